"""Word ids and answer classes."""

from collections.abc import Iterable
from typing import NamedTuple

from tasks.babi.readings import Reading

PADDING = 0


class Vocabulary(NamedTuple):
    """words: in alphabetical order, the first has id 1 (0 is padding); answers: the class of each is its position."""

    words: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of word ids, the padding among them."""
        return len(self.words) + 1

    def word_ids(self) -> dict[str, int]:
        """Word -> id, from 1."""
        return {word: index for index, word in enumerate(self.words, PADDING + 1)}

    def answer_ids(self) -> dict[str, int]:
        """Answer -> class, from 0."""
        return {answer: index for index, answer in enumerate(self.answers)}


def build_vocabulary(readings: Iterable[Reading]) -> Vocabulary:
    """The vocabulary of stories, questions and answers; give it train and test, so that no word is unknown.

    >>> reading = Reading((("mary", "went", "home"), ("where", "is", "mary")), (None, "home"), 1, 0)
    >>> build_vocabulary([reading])
    Vocabulary(words=('home', 'is', 'mary', 'went', 'where'), answers=('home',))
    """
    words, answers = set(), set()
    for reading in readings:
        words.update(word for row in reading.rows for word in row)
        answers.update(answer for answer in reading.answers if answer is not None)
    return Vocabulary(tuple(sorted(words)), tuple(sorted(answers)))
