"""Tests the parser: a round trip, every kind of malformed line, and arbitrary damage."""

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.babi import BabiFormatError, Question, parse

GOOD = b"""1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel went  back to the Hallway.
5 What is there?\tmilk,Football\t4 2
1 Mice are afraid of wolves.
2 What is afraid of wolves?\tmouse\t1
"""


def read(data):
    return list(parse(data, "qa1.txt", 1))


def test_reads_stories_questions_answers_and_supports():
    mary, john = ("mary", "moved", "to", "the", "bathroom"), ("john", "went", "to", "the", "hallway")
    daniel, mice = ("daniel", "went", "back", "to", "the", "hallway"), ("mice", "are", "afraid", "of", "wolves")
    assert read(GOOD) == [
        Question((mary, john), ("where", "is", "mary"), "bathroom", (0,), 0, 1),
        # Line 4 is the third sentence: the question on line 3 is not part of the story.
        Question((mary, john, daniel), ("what", "is", "there"), "milk,football", (2, 1), 0, 1),
        Question((mice,), ("what", "is", "afraid", "of", "wolves"), "mouse", (0,), 1, 1),
    ]


def test_line_ends_do_not_matter():
    assert read(GOOD.replace(b"\n", b"\r\n")) == read(GOOD) == read(GOOD.removesuffix(b"\n"))


@pytest.mark.parametrize(
    "changed",
    [
        b"\xef\xbb\xbf" + GOOD,
        GOOD.replace(b"\n1 Mice", b"\n\n \r\n1 Mice") + b"\n\n",
        GOOD.replace(b"bathroom.", b"bathroom!").replace(b"hallway.", b"hallway !"),
        GOOD.upper(),
    ],
    ids=["byte-order mark", "blank lines", "exclamation marks", "upper case"],
)
def test_files_that_people_made_are_read_as_the_official_ones(changed):
    assert read(changed) == read(GOOD)


@pytest.mark.parametrize("missing", [b"", b"\t", b"\t \r"])
def test_a_question_needs_no_supporting_ids(missing):
    changed = b"\n".join(line.rpartition(b"\t")[0] + missing if b"\t" in line else line for line in GOOD.splitlines())
    assert read(changed) == [question._replace(supports=()) for question in read(GOOD)]


@pytest.mark.parametrize(
    ("line", "number", "expected"),
    [
        (b"Mary moved.", 1, "a positive line id"),
        (b"1\tMary moved.", 2, "a positive line id"),
        (b"-1 Mary moved.", 1, "a positive line id"),
        (b"1_0 Mary moved.", 4, "a positive line id"),
        ("\u0661 Mary moved.".encode(), 1, "a positive line id"),  # a digit, but not an ASCII one
        (b"9" * 5000 + b" Mary moved.", 2, "a positive line id"),
        (b"0 Mary moved.", 1, "line id 1 on the first line"),
        (b"2 Mary moved.", 1, "line id 1 on the first line"),
        (b"3 Mary moved.", 2, "line id 2 or 1"),
        (b"3 Mary moved.", 4, "line id 4 or 1"),
        (b"0 Mary moved.", 4, "line id 4 or 1"),
        (b"2", 2, "a sentence that ends with '.' or '!'"),
        (b"2 Mary moved", 2, "a sentence that ends with '.'"),
        (b"3 Where is Mary?", 3, "a sentence that ends with '.'"),
        (b"2 .", 2, "words before the '.'"),
        (b"2 " + b"to " * 12 + b".", 2, r"at most 11 words (found 12; divide or shorten the sentence)"),
        (b"3 " + b"to " * 11 + b"what?\tbathroom\t1", 3, "at most 11 words (found 12"),
        (b"3 Where is Mary?\tbathroom\t1\t2", 3, "a question, a tab"),
        (b"3 Where is Mary\tbathroom\t1", 3, "a question that ends with '?'"),
        (b"3 ?\tbathroom\t1", 3, "words before the '?'"),
        (b"3 Where is Mary?\t \t1", 3, "an answer after the first tab"),
        (b"3 Where is Mary?\tmilk,,football\t1", 3, "an answer after the first tab"),
        (b"3 Where is Mary?\t", 3, "an answer after the first tab"),
        (b"3 Where is Mary?\tbathroom\t1 one", 3, "integers as supporting ids, not 'one'"),
        (b"3 Where is Mary?\tbathroom\t-1", 3, "integers as supporting ids"),
        (b"3 Where is Mary?\tbathroom\t0", 3, "supporting ids of earlier sentences of this story, not 0"),
        (b"3 Where is Mary?\tbathroom\t7", 3, "supporting ids of earlier sentences of this story, not 7"),
        (b"5 What is there?\tmilk\t3", 5, "supporting ids of earlier sentences of this story, not 3"),  # a question
        (b"2 What is afraid?\tmouse\t4", 7, "supporting ids of earlier sentences of this story, not 4"),  # last story's
        (b"2 Mary \xff moved.", 2, "UTF-8 text"),
    ],
)
def test_a_malformed_line_is_named(line, number, expected):
    lines = GOOD.split(b"\n")
    lines[number - 1] = line
    with pytest.raises(BabiFormatError) as error:
        read(b"\n".join(lines))
    message = str(error.value)
    assert message.startswith(f"qa1.txt:{number}: expected {expected}")
    assert "\n" not in message and len(message) < 400


@pytest.mark.parametrize("data", [b"", b"1 Mary moved.\n"])
def test_a_file_without_a_question_is_malformed(data):
    with pytest.raises(BabiFormatError, match=r"qa1\.txt:\d: expected at least one question"):
        read(data)


word = st.text(string.ascii_lowercase, min_size=1, max_size=6)
words = st.lists(word, min_size=1, max_size=5).map(tuple)


@st.composite
def files(draw):
    """Draws the text of a well-formed file and its questions; ids and positions are counted independently."""
    lines, questions = [], []
    for story_index in range(draw(st.integers(1, 3))):
        story, ids = [], []
        kinds = draw(st.lists(st.booleans(), min_size=1, max_size=6))
        for line_id, is_question in enumerate([False, *kinds, True], 1):
            text = draw(words)
            line = f"{line_id} {' '.join(text).capitalize()}"
            if not is_question:
                lines.append(f"{line}.")
                story.append(text)
                ids.append(line_id)
                continue
            answer = ",".join(draw(st.lists(word, min_size=1, max_size=3)))
            supports = tuple(draw(st.lists(st.integers(0, len(story) - 1), min_size=1, max_size=3)))
            lines.append(f"{line}?\t{answer}\t{' '.join(str(ids[position]) for position in supports)}")
            questions.append(Question(tuple(story), text, answer, supports, story_index, 7))
    return "\n".join(lines) + "\n", questions


@given(files())
@settings(max_examples=100, deadline=None)
def test_round_trip(file):
    text, questions = file
    assert list(parse(text.encode(), "file", 7)) == questions


@st.composite
def damaged(draw):
    data = draw(files())[0].encode()
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 8)))
        # Characters that have a meaning in the format find more faults than arbitrary bytes.
        put = draw(st.one_of(st.binary(max_size=4), st.text("0123456789 \t\n\r.?,-\x85", max_size=4).map(str.encode)))
        data = data[:start] + put + data[stop:]
    return data


@given(damaged())
@settings(max_examples=200, deadline=None)
def test_damage_is_read_or_reported_with_file_and_line(data):
    try:
        questions = list(parse(data, "some/file.txt", 7))
    except BabiFormatError as error:
        match = re.match(r"some/file\.txt:(\d+): expected ", str(error))
        assert match, str(error)
        assert 1 <= int(match[1]) <= data.count(b"\n") + 1
        return
    assert questions
    for question in questions:
        assert question.question and question.answer
        assert all(question.story) and all(0 <= support < len(question.story) for support in question.supports)
