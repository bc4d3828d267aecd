"""Questions of one story put together, so that the story is read once.

Shape letters: `T` rows of a reading: sentences and questions.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tasks.babi.parse import Question, Words


class Reading(NamedTuple):
    """A part of a story and the questions that are asked about it, in the order in which they were told.

    rows: words of every sentence and question. answers: of every row; None for a sentence.
    task, story_index: where it stands.
    """

    rows: tuple[Words, ...]
    answers: tuple[str | None, ...]
    task: int
    story_index: int


def readings(questions: Iterable[Question], max_sentences: int) -> Iterator[Reading]:
    """The readings of one file, in its order; every question is in exactly one.

    A question is asked about the last `max_sentences` sentences before it. Those of a story whose sentences begin at
    the same place share a reading; most stories are one.
    """
    for _, told in itertools.groupby(questions, key=lambda question: question.story_index):
        starts = itertools.groupby(told, key=lambda question: max(0, len(question.story) - max_sentences))
        for start, group in starts:
            yield _reading(start, list(group))


def _reading(start: int, questions: list[Question]) -> Reading:
    rows, answers, place = [], [], start
    for question in questions:
        new = question.story[place:]
        place = len(question.story)
        rows += [*new, question.question]
        answers += [None] * len(new) + [question.answer]
    return Reading(tuple(rows), tuple(answers), questions[0].task, questions[0].story_index)
