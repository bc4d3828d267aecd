"""Word ids and answer classes."""

from collections.abc import Iterable
from typing import NamedTuple

from tasks.babi.readings import Reading

PADDING = 0


class Vocabulary(NamedTuple):
    """The words and answers of a data set.

    Attributes:
      words: words in alphabetical order; the first has id 1 (0 is padding).
      answers: answers in alphabetical order; the class of each is its position.
    """

    words: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of word ids, including the padding."""
        return len(self.words) + 1

    def word_ids(self) -> dict[str, int]:
        """Returns the id of each word, from 1."""
        return {word: index for index, word in enumerate(self.words, PADDING + 1)}

    def answer_ids(self) -> dict[str, int]:
        """Returns the class of each answer, from 0."""
        return {answer: index for index, answer in enumerate(self.answers)}


def build_vocabulary(readings: Iterable[Reading]) -> Vocabulary:
    """Returns the vocabulary of readings; with train and test among them, no word is unknown.

    Examples:
      >>> rows = (("mary", "went", "home"), ("where", "is", "mary"))
      >>> build_vocabulary([Reading(rows=rows, answers=(None, "home"), task=1, story_index=0)])
      Vocabulary(words=('home', 'is', 'mary', 'went', 'where'), answers=('home',))
    """
    words: set[str] = set()
    answers: set[str] = set()
    for reading in readings:
        words.update(word for row in reading.rows for word in row)
        answers.update(answer for answer in reading.answers if answer is not None)
    return Vocabulary(words=tuple(sorted(words)), answers=tuple(sorted(answers)))
