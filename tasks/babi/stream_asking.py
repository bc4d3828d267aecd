"""Runs an endless conversation with a trained model of catbAbI."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax.training import SequenceModel
from tasks.babi.asking import NEW_STORY, SHOWN, Answer, sentence_words, split_line
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
    """

    def __init__(self, task: BabiStream, model: SequenceModel):
        self._task, self._model = task, model
        self._step = jax.jit(SequenceModel.step)
        self._carry = model.start(1)
        self._read([END])
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
            self._task.encode(words)  # raises an error before anything is read
        if begins:
            self._read([END])
            self.story += 1
        self._begun = words is not None or (self._begun and not begins)
        if words is None:
            return None
        logits = self._read(words, MARK if asked else STOP)
        if not asked:
            return None
        probabilities = np.asarray(jax.nn.softmax(logits))[PADDING + 1 :]
        best = np.argsort(-probabilities)[:SHOWN]
        answers = [self._task.vocabulary.words[place] for place in best]
        self._read(answers[:1])
        found = list(zip(answers, probabilities[best].tolist(), strict=True))
        return Answer(story=self.story, question=text, answers=found, guessed=False, sentences=[], notes=[])

    def _read(self, words: Sequence[str], mark: str = "") -> jax.Array:
        """Reads the words of a sentence and its mark; returns the logits after the last one, `[C]`."""
        resets = self._task.controller == "sentence"
        for place, inputs in enumerate(self._task.encode(words, mark)):
            flag = {"reset_controller": jnp.array([place == 0])} if resets else {}
            self._carry, logits = self._step(self._model, self._carry, jnp.asarray(inputs)[None], **flag)
        return logits[0]
