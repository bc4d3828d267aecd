"""Encodes readings as rows of word ids.

Shape letters: `T` rows of a reading, sentences and questions; `W` words of a row.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.babi.parser import WORDS
from tasks.babi.readings import Reading
from tasks.babi.vocabulary import PADDING

NO_QUESTION = -1


def encode_rows(rows: Sequence[Sequence[str]], word_ids: Mapping[str, int], where: str) -> np.ndarray:
    """Returns word ids, int32 `[T, W]`; short rows are padded with 0.

    Args:
      rows: words of each row.
      word_ids: see `Vocabulary.word_ids`.
      where: origin of the rows, for messages.

    Raises:
      ValueError: a row is empty or longer than `W` = 11 words, or has a word that is not in `word_ids`.

    Examples:
      >>> encode_rows([("mary", "left")], {"left": 1, "mary": 2}, "an example")
      array([[2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]], dtype=int32)
    """
    encoded = np.full((len(rows), WORDS), PADDING, np.int32)
    for target, row in zip(encoded, rows, strict=True):
        if not 0 < len(row) <= WORDS:
            raise ValueError(
                f"{where}: a sentence of {len(row)} words, 1 to {WORDS} can be encoded: {' '.join(row)!r}."
            )
        unknown = [word for word in row if word not in word_ids]
        if unknown:
            raise ValueError(f"{where}: the word {unknown[0]!r} in {' '.join(row)!r} is not in the vocabulary.")
        target[: len(row)] = [word_ids[word] for word in row]
    return encoded


def encode_reading(reading: Reading, word_ids: Mapping[str, int], answer_ids: Mapping[str, int]) -> dict[str, Any]:
    """Returns a record: `words` int32 `[T, W]`, `answers` int32 `[T]` (-1 for a sentence), `task`, `story_index`."""
    answers = [NO_QUESTION if answer is None else answer_ids[answer] for answer in reading.answers]
    return {
        "words": encode_rows(reading.rows, word_ids, f"task {reading.task}, story {reading.story_index}"),
        "answers": np.array(answers, np.int32),
        "task": reading.task,
        "story_index": reading.story_index,
    }
