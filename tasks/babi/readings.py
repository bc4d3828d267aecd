"""Joins the questions of a story into readings, so that the story is read once.

Shape letter: `T` rows of a reading, sentences and questions.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tasks.babi.parser import Question, Words


class Reading(NamedTuple):
    """A part of a story with the questions about it, in the order of the file.

    Attributes:
      rows: words of each sentence and question, `[T]`.
      answers: answer of each row, `[T]`; None for a sentence.
      task: 1 to 20.
      story_index: number of the story in its file, from 0.
    """

    rows: tuple[Words, ...]
    answers: tuple[str | None, ...]
    task: int
    story_index: int


def readings(questions: Iterable[Question], max_sentences: int, apart: bool = False) -> Iterator[Reading]:
    r"""Returns the readings of one file, in its order; every question is in exactly one.

    A question sees the last `max_sentences` sentences before it. Questions of a story whose first visible sentence is
    the same share a reading; most stories are one reading.

    Args:
      questions: the questions of one file, in order.
      max_sentences: sentences that a question sees.
      apart: whether every question has a reading of its own, with the question last.

    Examples:
      >>> from tasks.babi.parser import parse
      >>> text = b"1 Mary left.\n2 Who left?\tmary\t1\n3 John left.\n4 Who stayed?\tnobody\t3\n"
      >>> [reading.answers for reading in readings(parse(text, "example", 1), max_sentences=2)]
      [(None, 'mary', None, 'nobody')]
      >>> [reading.answers for reading in readings(parse(text, "example", 1), max_sentences=1)]
      [(None, 'mary'), (None, 'nobody')]
      >>> [reading.answers for reading in readings(parse(text, "example", 1), max_sentences=2, apart=True)]
      [(None, 'mary'), (None, None, 'nobody')]
    """
    if apart:
        yield from (_reading(max(0, len(question.story) - max_sentences), [question]) for question in questions)
        return
    for _, of_story in itertools.groupby(questions, key=lambda question: question.story_index):
        starts = itertools.groupby(of_story, key=lambda question: max(0, len(question.story) - max_sentences))
        for start, group in starts:
            yield _reading(start, list(group))


def _reading(start: int, questions: Sequence[Question]) -> Reading:
    rows: list[Words] = []
    answers: list[str | None] = []
    place = start
    for question in questions:
        new = question.story[place:]
        place = len(question.story)
        rows += [*new, question.question]
        answers += [None] * len(new) + [question.answer]
    return Reading(
        rows=tuple(rows), answers=tuple(answers), task=questions[0].task, story_index=questions[0].story_index
    )
