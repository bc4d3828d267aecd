"""Parses the text format of the bAbI tasks: reads the bytes of one file and yields its questions.

A file is a sequence of stories. Every line starts with an id that counts from 1 within its story; id 1 starts the next
story. A line is a sentence, or a question with its answer and the ids of the sentences that support it:

    1 Mary moved to the bathroom.
    2 John went to the hallway.
    3 Where is Mary?<TAB>bathroom<TAB>1

Files that people made or edited are read as well: with a byte-order mark, Windows line ends, blank lines, upper case,
sentences that end with "!", and questions without supporting ids.
"""

import codecs
import re
from collections.abc import Iterator
from typing import NamedTuple

Words = tuple[str, ...]

WORDS = 11  # in the longest sentence of the 20 tasks; a longer sentence is refused

# At most 9 digits: a longer id is a sign of damage, and Python limits the number of digits that `int` accepts.
_INTEGER = re.compile(r"[0-9]{1,9}")


class BabiFormatError(ValueError):
    """A malformed line; the message names the file, the line and the expected content."""


class Question(NamedTuple):
    """One question and the sentences before it; words are lower-cased and without the final stop.

    Attributes:
      story: the sentences before the question, oldest first, without earlier questions.
      question: the words of the question.
      answer: one class; a list such as "milk,football" is one class too.
      supports: positions in `story`, from 0, of the sentences that support the answer; empty if the file has none.
      story_index: number of the story in its file, from 0.
      task: 1 to 20.
    """

    story: tuple[Words, ...]
    question: Words
    answer: str
    supports: tuple[int, ...]
    story_index: int
    task: int


def parse(data: bytes, path: str, task: int) -> Iterator[Question]:
    r"""Returns the questions of one file, in order.

    Args:
      data: the bytes of the file.
      path: its name, for messages.
      task: the number of the task, which the questions carry.

    Raises:
      BabiFormatError: at the first malformed line, or if the file holds no question.

    Examples:
      >>> text = b"1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary?\tbathroom\t1\n"
      >>> (question,) = parse(text, "an example", task=1)
      >>> question.question, question.answer, question.supports
      (('where', 'is', 'mary'), 'bathroom', (0,))
      >>> question.story[question.supports[0]]
      ('mary', 'moved', 'to', 'the', 'bathroom')
    """
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    if not lines[-1]:
        lines.pop()
    story: list[Words] = []
    positions: dict[int, int] = {}  # line id of a sentence -> its place in `story`
    story_index, previous_id, found = -1, 0, False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            line_id, content = _split_id(line, previous_id)
            if line_id == 1:
                story, positions, story_index = [], {}, story_index + 1
            previous_id = line_id
            if "\t" in content:
                question, answer, supports = _question(content, positions)
                found = True
                yield Question(
                    story=tuple(story),
                    question=question,
                    answer=answer,
                    supports=supports,
                    story_index=story_index,
                    task=task,
                )
            else:
                positions[line_id] = len(story)
                story.append(_words(content, ".!", "a sentence that ends with '.' or '!', or a question with tabs"))
        except _Expected as error:
            got = repr(line[:60].decode("utf-8", "replace"))
            raise BabiFormatError(f"{path}:{number}: expected {error}, got {got}.") from None
    if not found:
        raise BabiFormatError(f"{path}:{len(lines)}: expected at least one question, got the end of the file.")


class _Expected(Exception):
    """The expected content of a line; `parse` adds the file, the line and its content."""


def _split_id(line: bytes, previous_id: int) -> tuple[int, str]:
    """Returns the id of a line and the text after it."""
    try:
        text = line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError:
        raise _Expected("UTF-8 text") from None
    digits, _, content = text.partition(" ")
    if not _INTEGER.fullmatch(digits):
        raise _Expected("a positive line id and a space at the start of the line")
    line_id = int(digits)
    if line_id != 1 and (line_id != previous_id + 1 or previous_id == 0):
        raise _Expected(f"line id {previous_id + 1} or 1" if previous_id else "line id 1 on the first line")
    return line_id, content


def _words(text: str, stops: str, expected: str) -> Words:
    """Returns the words of a text that ends with one of the characters `stops`."""
    text = text.strip()
    if not text.endswith(tuple(stops)):
        raise _Expected(expected)
    words = tuple(text[:-1].lower().split())
    if not words:
        raise _Expected(f"words before the {text[-1]!r}")
    if len(words) > WORDS:
        raise _Expected(f"at most {WORDS} words (found {len(words)}; divide or shorten the sentence)")
    return words


def _question(content: str, positions: dict[int, int]) -> tuple[Words, str, tuple[int, ...]]:
    """Returns (words, answer, supports) of a question; positions: place in the story by line id."""
    text, answer, *rest = content.split("\t")
    if len(rest) > 1:
        raise _Expected("a question, a tab, its answer, and at most another tab and the supporting ids")
    question = _words(text, "?", "a question that ends with '?' before the first tab")
    answer = answer.strip().lower()
    if not all(item.strip() for item in answer.split(",")):
        raise _Expected("an answer after the first tab, with no empty item")
    supports = []
    for digits in "".join(rest).split():
        if not _INTEGER.fullmatch(digits):
            raise _Expected(f"integers as supporting ids, not {digits[:20]!r}")
        if int(digits) not in positions:
            raise _Expected(f"supporting ids of earlier sentences of this story, not {int(digits)}")
        supports.append(positions[int(digits)])
    return question, answer, tuple(supports)
