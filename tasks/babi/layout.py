"""Lays out the rows of a reading as the steps of an example.

Shape letters: `n` rows of a reading, `t` steps of an example, `W` words of a step.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mnm_jax.training import Batch
from tasks.babi.encode import NO_QUESTION, WORDS
from tasks.babi.vocabulary import PADDING

CONTROLLERS = ("story", "sentence")


class Layout(NamedTuple):
    """The steps of a sentence and of a question.

    A sentence is 1 + `sentence_think_steps` steps. A question is one step on a fork of the carry or, with think steps,
    1 + `think_steps` steps after which the memory is as before the question. With think steps of either kind, the words
    of a step have one more column, which marks its kind: padding in the first step of a sentence, the id `words` ("?")
    in that of a question, `words + k` in think step k of a question and `words + think_steps + k` in think step k of a
    sentence. Think steps have no other word. With `apart` a question is the last row of its record, so that it needs
    neither a fork nor a discarded memory: its think steps read what the question and the think steps before them have
    written.

    Attributes:
      words: number of word ids, including the padding.
      think_steps: steps between a question and its answer.
      sentence_think_steps: steps between a sentence and the next row.
      controller: "story", or "sentence": the cell's controller is reset at every sentence and question.
      apart: whether every question is the last row of its record.
    """

    words: int = 0
    think_steps: int = 0
    sentence_think_steps: int = 0
    controller: str = "story"
    apart: bool = False

    @property
    def marks(self) -> int:
        """The number of word ids that only questions and think steps have."""
        think_steps = self.think_steps + self.sentence_think_steps
        return 1 + think_steps if think_steps else 0

    @property
    def columns(self) -> int:
        """The number of words of a step, `W`."""
        return WORDS + bool(self.marks)

    def rows(self, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the row of each step, `[t]`, and its place among the steps of the row.

        Args:
          asked: `[n]` bool, True = the row is a question.

        Examples:
          >>> Layout(think_steps=2).rows(np.array([False, True, False]))
          (array([0, 1, 1, 1, 2]), array([0, 0, 1, 2, 0]))
        """
        steps = 1 + np.where(asked, self.think_steps, self.sentence_think_steps)
        row = np.repeat(np.arange(len(asked)), steps)
        return row, np.arange(len(row)) - (np.cumsum(steps) - steps)[row]

    def arrange(self, record: Mapping[str, Any]) -> Batch:
        """Returns the example of a record (see `encode_reading`), with leaves `[t, ...]`."""
        asked = record["answers"] != NO_QUESTION
        row, place = self.rows(asked)
        question = asked[row]
        answered = question & (place == self.think_steps)
        words = record["words"][row]
        if self.marks:
            words = np.where((place == 0)[:, None], words, PADDING)
            of_sentence = np.where(place == 0, PADDING, self.words + self.think_steps + place)
            marks = np.where(question, self.words + place, of_sentence)
            words = np.concatenate([words, marks[:, None]], 1, dtype=np.int32)
        return Batch(
            inputs=words,
            targets=np.where(answered, record["answers"][row], 0).astype(np.int32),
            loss_mask=answered.astype(np.float32),
            mask=np.ones(len(row), np.bool_),
            fork=None if self.think_steps or self.apart else question,
            reset_controller=place == 0 if self.controller == "sentence" else None,
            fork_memory=question if self.think_steps and not self.apart else None,
        )

    def kinds(self, batch: Batch, index: int) -> np.ndarray:
        """Returns the kind of each unmasked step of an example, `[t]`.

        -1 is the first step of a sentence, 0 the first of a question, `k` think step k of a question, and
        `think_steps + k` think step k of a sentence.
        """
        steps = slice(int(np.sum(np.asarray(batch.mask)[:, index])))
        if not self.marks:
            return np.asarray(batch.loss_mask)[steps, index].astype(int) - 1
        marks = np.asarray(batch.inputs)[steps, index, -1]
        return np.where(marks == PADDING, -1, marks - self.words)


EMPTY = {"words": np.zeros((0, WORDS), np.int32), "answers": np.zeros(0, np.int32)}
