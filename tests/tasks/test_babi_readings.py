"""Tests readings by hand, and that every question sees its own sentences and no others."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.babi import Question, parse
from tasks.babi.archive import read_files
from tasks.babi.readings import Reading, readings

MARY, JOHN, LEFT = ("mary", "went", "home"), ("john", "slept"), ("mary", "left")
WHERE, WHO, WHAT = ("where", "is", "mary"), ("who", "slept"), ("what", "is", "there")


def ask(story, question, answer, story_index=0):
    return Question(story, question, answer, (0,), story_index, 6)


def test_two_questions_become_one_reading():
    questions = [ask((MARY,), WHERE, "home"), ask((MARY, JOHN, LEFT), WHO, "john")]
    expected = Reading((MARY, WHERE, JOHN, LEFT, WHO), (None, "home", None, None, "john"), 6, 0)
    assert [reading.answers for reading in readings(questions, 70, apart=True)] == [
        (*(None for _ in question.story), question.answer) for question in questions
    ]
    assert list(readings(questions, 3)) == list(readings(questions, 70)) == [expected]


def test_a_long_story_is_split_where_its_beginning_is_forgotten():
    story = (MARY, JOHN, LEFT)
    questions = [ask(story[:2], WHERE, "home"), ask(story, WHO, "john"), ask(story, WHAT, "milk,football")]
    assert list(readings(questions, 2)) == [
        Reading((MARY, JOHN, WHERE), (None, None, "home"), 6, 0),
        # No sentence separates the last two questions: they see the same two sentences.
        Reading((JOHN, LEFT, WHO, WHAT), (None, None, "john", "milk,football"), 6, 0),
    ]
    assert list(readings(questions, 1)) == [
        Reading((JOHN, WHERE), (None, "home"), 6, 0),
        Reading((LEFT, WHO, WHAT), (None, "john", "milk,football"), 6, 0),
    ]


def test_stories_are_kept_apart_even_if_they_begin_alike():
    questions = [ask((MARY,), WHERE, "home", 3), ask((MARY, LEFT), WHERE, "nowhere", 4)]
    assert list(readings(questions, 70)) == [
        Reading((MARY, WHERE), (None, "home"), 6, 3),
        Reading((MARY, LEFT, WHERE), (None, None, "nowhere"), 6, 4),
    ]


@st.composite
def files(draw):
    """Draws questions of up to four stories, in which no sentence and no question occurs twice."""
    questions = []
    for story_index in range(draw(st.integers(1, 4))):
        story = []
        kinds = draw(st.lists(st.booleans(), max_size=20))
        for place, is_question in enumerate([False, *kinds, True]):
            words = ("story", str(story_index), "row", str(place))
            if is_question:
                questions.append(ask(tuple(story), words, f"answer {len(questions)}", story_index))
            else:
                story.append(words)
    return questions


def seen(found):
    """Returns (visible sentences, question, answer, story, task) of each question, in the order of the readings."""
    for reading in found:
        told = ()
        for row, answer in zip(reading.rows, reading.answers, strict=True):
            if answer is None:
                told += (row,)
            else:
                yield told, row, answer, reading.story_index, reading.task


def asked(questions, max_sentences):
    return [(q.story[-max_sentences:], q.question, q.answer, q.story_index, q.task) for q in questions]


@given(files(), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_every_question_sees_exactly_the_last_sentences_before_it(questions, max_sentences):
    # In the order of the file, so every question is in exactly one reading.
    assert list(seen(readings(questions, max_sentences))) == asked(questions, max_sentences)


@given(files(), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_no_more_is_read_than_the_questions_need(questions, max_sentences):
    found = list(readings(questions, max_sentences))
    assert all(reading.answers[-1] is not None for reading in found)
    assert len({reading.rows[0] for reading in found}) == len(found)  # at most one reading starts at a sentence
    starts = {(question.story_index, max(0, len(question.story) - max_sentences)) for question in questions}
    assert len(found) == len(starts)


@pytest.mark.parametrize("max_sentences", [5, 70])
def test_the_real_questions_see_the_last_sentences_before_them(babi_dir, max_sentences):
    for (task, _), file in read_files(babi_dir, "1k", range(1, 21)).items():
        questions = list(parse(file.data, file.path, task))
        assert list(seen(readings(questions, max_sentences))) == asked(questions, max_sentences)
