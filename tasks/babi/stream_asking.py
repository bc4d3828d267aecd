"""Runs an endless conversation with a trained model of catbAbI."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax.training import SequenceModel
from tasks.babi.asking import NEW_STORY, SHOWN, Answer, sentence_words, split_line
from tasks.babi.doubts import find_doubts
from tasks.babi.language import Language
from tasks.babi.names import near_words
from tasks.babi.parser import Words
from tasks.babi.samples import END, MARK, STOP
from tasks.babi.stream import BabiStream
from tasks.babi.vocabulary import PADDING


class StreamConversation:
    """One endless conversation: the model reads every line word by word, and its memory is never emptied.

    The model's most probable answer to a question is its next input, as the right answer is in training. A line
    numbered 1, and the line "/new", are read as the word "<end>", with which stories begin.

    Args:
      task: the task of the model.
      model: a trained model.
      language: returns the language of the task's data; called at the first question.
    """

    def __init__(self, task: BabiStream, model: SequenceModel, language: Callable[[], Language]):
        self._task, self._model, self._language = task, model, language
        self._step = jax.jit(SequenceModel.step)
        self._carry = model.start(1)
        self._read([END])
        self._told: list[Words] = []  # the sentences of the story
        self._begun = False  # whether the story has a line
        self.story = 1

    def tell(self, line: str) -> Answer | None:
        """Reads a sentence, or reads a question and returns the answer to it.

        Raises:
          ValueError: a line has several sentences, more words than a sentence of training, or an unseen word. The model
            then has not read the line.
        """
        number, text = split_line(line)
        begins = (number == 1 or text == NEW_STORY) and self._begun
        asked, words = text.endswith("?"), None
        if text not in ("", NEW_STORY):
            words = sentence_words(text)
            self._check(words)
        if begins:
            self._read([END])
            self._told = []
            self.story += 1
        self._begun = words is not None or (self._begun and not begins)
        if words is None:
            return None
        logits = self._read(words, MARK if asked else STOP)
        if not asked:
            self._told.append(words)
            return None
        probabilities = np.asarray(jax.nn.softmax(logits))[PADDING + 1 :]
        best = np.argsort(-probabilities)[:SHOWN]
        answers = [self._task.vocabulary.words[place] for place in best]
        self._read(answers[:1])
        found = list(zip(answers, probabilities[best].tolist(), strict=True))
        notes, guessed = find_doubts(
            words, answers[0], self._told, self._language().forms, self._task.vocabulary.answers
        )
        return Answer(story=self.story, question=text, answers=found, guessed=guessed, sentences=[], notes=notes)

    def _check(self, words: Words) -> None:
        """Raises an error for a line that the model cannot read, before it reads any of it."""
        known = self._task.vocabulary.words
        for word in words:
            if word not in known:
                where = f"{word!r} in {' '.join(words)!r}"
                raise ValueError(f"the word {where} is not in the vocabulary; {near_words(word, known)}.")
        self._task.encode(words)

    def _read(self, words: Sequence[str], mark: str = "") -> jax.Array:
        """Reads the words of a sentence and its mark; returns the logits after the last one, `[C]`."""
        resets = self._task.controller == "sentence"
        for place, inputs in enumerate(self._task.encode(words, mark)):
            flag = {"reset_controller": jnp.array([place == 0])} if resets else {}
            self._carry, logits = self._step(self._model, self._carry, jnp.asarray(inputs)[None], **flag)
        return logits[0]
