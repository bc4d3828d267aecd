"""Word ids and answer classes."""

from collections.abc import Iterable
from typing import NamedTuple

from tasks.babi.parse import Question

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


def build_vocabulary(questions: Iterable[Question]) -> Vocabulary:
    """The vocabulary of stories, questions and answers; give it train and test, so that no word is unknown.

    >>> where = Question((("mary", "went", "home"),), ("where", "is", "mary"), "home", (0,), 0, 1)
    >>> build_vocabulary([where])
    Vocabulary(words=('home', 'is', 'mary', 'went', 'where'), answers=('home',))
    """
    sentences, answers = set(), set()
    for question in questions:
        sentences.update(question.story)
        sentences.add(question.question)
        answers.add(question.answer)
    words = {word for sentence in sentences for word in sentence}
    return Vocabulary(tuple(sorted(words)), tuple(sorted(answers)))
