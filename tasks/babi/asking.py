"""Answers questions about stories with a trained bAbI model."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from mnm_jax.analysis import memory_maps
from mnm_jax.cells import CellOutput
from mnm_jax.training import Batch, SequenceModel
from tasks.babi.doubts import QUESTION_WORDS, find_doubts
from tasks.babi.encode import NO_QUESTION
from tasks.babi.language import Language
from tasks.babi.names import read_unseen
from tasks.babi.parser import Words
from tasks.babi.task import Babi

NEW_STORY = "/new"

SHOWN = 3  # answers and sentences per question
_STEPS = 16  # least number of steps after padding; the others are powers of two, so that few programs are compiled


class Answer(NamedTuple):
    """The answer to one question.

    Attributes:
      story: number of the story, from 1.
      question: its text.
      answers: (answer, probability), the most probable first. The probability assumes, as in training, that the story
        determines the answer: there is no answer "unknown".
      guessed: whether `answers` can only be guesses, because question or answer has no counterpart in training; see
        `tasks.babi.doubts.find_doubts`.
      sentences: (cosine, number from 1, text), the most similar first; empty for a model without a memory.
      notes: names that are new with the names as which they are read, the reasons of `find_doubts`, and how many
        sentences the question does not see.
    """

    story: int
    question: str
    answers: list[tuple[str, float]]
    guessed: bool
    sentences: list[tuple[float, int, str]]
    notes: list[str]


class Conversation:
    """Stories, line by line, and the answers to questions about them.

    A question sees the sentences before it, up to the limit of training; questions do not change the story.

    Args:
      task: the task of the model.
      model: a trained model.
      language: returns the language of the task's data; called at the first question or unseen word.
    """

    def __init__(self, task: Babi, model: SequenceModel, language: Callable[[], Language]):
        self._task, self._model, self._language = task, model, language
        self._lines: list[tuple[str, Words]] = []
        self._noted: dict[str, str] = {}  # unseen names and their spare ones in the answer before
        self._run = jax.jit(_run)
        self.story = 1

    def tell(self, line: str) -> Answer | None:
        """Adds a sentence to the story, or returns the answer to a question.

        A line numbered 1, and the line "/new", begin a new story.

        Raises:
          ValueError: a line has several sentences, more words than a sentence of training, or a word that the model
            cannot read; the story stays as it was.
        """
        number, text = split_line(line)
        begins = (number == 1 or text == NEW_STORY) and bool(self._lines)
        lines, answer = [] if begins else self._lines, None
        if text not in ("", NEW_STORY):
            told = [*lines, (text, sentence_words(text))]
            self._noted = {} if begins else self._noted
            names = self._read([row for _, row in told])
            if text.endswith("?"):
                answer = self._answer(told, names, self.story + begins)
            else:
                lines = told
        self._lines, self.story = lines, self.story + begins
        return answer

    def _read(self, rows: list[Words]) -> dict[str, str]:
        known = set(self._task.vocabulary.words)
        unseen = any(word not in known for row in rows for word in row)
        names = read_unseen(rows, self._task.vocabulary, self._language().contexts) if unseen else {}
        self._task.encode([_rename(row, names) for row in rows])  # raises for a line that is too long
        return names

    def _answer(self, told: list[tuple[str, Words]], names: dict[str, str], number: int) -> Answer:
        most = self._task.longest_story
        first = max(0, len(told) - 1 - most)
        seen = told[first:]
        count = len(seen)
        words = self._task.encode([_rename(row, names) for _, row in seen])
        answers_of_rows = np.array([NO_QUESTION] * (count - 1) + [0])
        example = self._task.layout.arrange({"words": words, "answers": answers_of_rows})
        last = len(example.mask) - 1  # the question's only step, or its last think step
        pad = max(_STEPS, 1 << last.bit_length()) - last - 1
        batch = jax.tree.map(lambda leaf: np.pad(leaf, [(0, pad), *[(0, 0)] * (leaf.ndim - 1)])[:, None], example)
        output = self._run(self._model, batch)
        probabilities = np.asarray(jax.nn.softmax(output.logits[last, 0]))
        originals = {spare: name for name, spare in names.items()}
        best = np.argsort(-probabilities)[:SHOWN]
        shown = [_rename_answer(self._task.answers[place], originals) for place in best]
        answers = list(zip(shown, probabilities[best].tolist(), strict=True))
        sentences = []
        if isinstance(output.cell, CellOutput):
            trace = jax.tree.map(lambda leaf: np.asarray(leaf[: last + 1, 0]), output.cell.trace)
            row, _ = self._task.layout.rows(answers_of_rows != NO_QUESTION)
            by_step = memory_maps(trace).keys[row == count - 1].max(0)  # at any step of the question
            similarity = np.array([by_step[row == place].max() for place in range(count - 1)])
            nearest = np.argsort(-similarity)[:SHOWN]
            sentences = [(float(similarity[place]), first + int(place) + 1, seen[place][0]) for place in nearest]
        new = names.items() - self._noted.items()
        self._noted = names
        notes = [f"{name!r} is new, and read as {spare!r}" for name, spare in names.items() if (name, spare) in new]
        *story, question = (_rename(row, names) for _, row in seen)
        answer = self._task.answers[best[0]]
        forms = self._language().forms
        doubts, guessed = find_doubts(question, answer, story, forms, self._task.answers, originals)
        notes += doubts
        if first:
            notes.append(f"the question sees the last {most} of {len(told) - 1} sentences, as in training")
        asked = told[-1][0]
        return Answer(story=number, question=asked, answers=answers, guessed=guessed, sentences=sentences, notes=notes)


class Teller(Protocol):
    """The interface of `Conversation` and `StreamConversation`: reads stories line by line and answers questions."""

    story: int

    def tell(self, line: str) -> Answer | None:
        """See `Conversation.tell`."""
        ...


def converse(conversation: Teller, lines: Iterable[str], keep_on: bool = False) -> Iterator[str]:
    """Yields the text of each answer, and a line where a new story begins.

    Args:
      conversation: takes the lines.
      lines: sentences and questions.
      keep_on: whether a line that cannot be read is left out with its reason as text, instead of raising an error.

    Raises:
      ValueError: a line cannot be read, or there is no question.
    """
    questions = 0
    for number, line in enumerate(lines, 1):
        story = conversation.story
        try:
            answer = conversation.tell(line)
        except ValueError as error:
            if not keep_on:
                raise ValueError(f"line {number}: {error}") from error
            yield f"left out: {error}"
            continue
        if conversation.story > story:
            yield f"--- story {conversation.story}"
        if answer is not None:
            questions += 1
            yield format_answer(answer)
    if not questions and not keep_on:
        raise ValueError("the story has no question: end a line with a question mark.")


def format_answer(answer: Answer) -> str:
    """Returns the question, a line of answers, and a line per note and per sentence."""
    if answer.guessed:
        answers = "unknown; a guess is " + answer.answers[0][0]
    else:
        answers = "   ".join(f"{text} {probability:.1%}" for text, probability in answer.answers)
    notes = [f"  ! {note}" for note in answer.notes]
    lines = [f"  {cosine:5.2f}  {number:3d} {text}" for cosine, number, text in answer.sentences]
    return "\n".join([f"? {answer.question}", f"= {answers}", *notes, *lines])


def _run(model: SequenceModel, batch: Batch) -> Any:
    return model(batch.inputs, **batch.flags)


def split_line(line: str) -> tuple[int | None, str]:
    """Returns the number in front of a line and the rest, without the text after a question mark.

    Raises:
      ValueError: the line has two questions.
    """
    digits = re.match(r"\ufeff?(\d{1,9})\s+", line.lstrip())
    text = line.lstrip()[digits.end() if digits else 0 :].strip("\ufeff \t\r\n")
    if any(re.search(r"\w", part) for part in text.split("?")[1:-1]):
        raise ValueError(f"a line must have one question, got {text!r}: write each on a line of its own.")
    return int(digits[1]) if digits else None, text[: text.index("?") + 1] if "?" in text else text


def sentence_words(text: str) -> Words:
    """Returns the words of a sentence or question, in lower case and without punctuation.

    Raises:
      ValueError: the text has several sentences, or is a question without a question mark.
    """
    if re.search(r"[.!?]\W*\w", text):
        raise ValueError(f"a line must have one sentence, got {text!r}: write each on a line of its own.")
    plain = re.sub(r"^\W*(where|what|who|how)['’]s\b", r"\1 is", text.lower())
    words = tuple(re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", plain))
    if words and words[0] in QUESTION_WORDS and not text.endswith("?"):
        raise ValueError(f"no sentence begins with {words[0]!r}, got {text!r}: end a question with a question mark.")
    return words


def _rename(row: Words, names: dict[str, str]) -> Words:
    return tuple(names.get(word, word) for word in row)


def _rename_answer(answer: str, names: dict[str, str]) -> str:
    return ",".join(names.get(word, word) for word in answer.split(","))
