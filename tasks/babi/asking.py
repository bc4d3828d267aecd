"""Answers questions about a story with a trained bAbI model."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax.analysis import memory_maps
from mnm_jax.cells import CellOutput
from mnm_jax.training import SequenceModel
from tasks.babi.task import Babi

_SHOWN = 3  # answers and sentences per question


class Answer(NamedTuple):
    """The answer to one question.

    Attributes:
      question: its text.
      answers: (answer, probability), the most probable first.
      sentences: (cosine, number from 1, text), the most similar first; empty for a model without a memory.
    """

    question: str
    answers: list[tuple[str, float]]
    sentences: list[tuple[float, int, str]]


def ask(task: Babi, model: SequenceModel, lines: Iterable[str]) -> list[Answer]:
    """Returns the answer to every question among the lines; a question refers to the sentences before it.

    Raises:
      ValueError: if there is no question, a word is not in the vocabulary, or a sentence is too long.
    """
    texts = [text for text in map(_clean, lines) if text]
    asked = np.array([text.endswith("?") for text in texts])
    if not asked.any():
        raise ValueError("the story has no question: end a line with a question mark.")
    words = task.encode([tuple(text.rstrip("?. ").lower().split()) for text in texts])
    output = model(jnp.asarray(words)[:, None], None, jnp.asarray(asked)[:, None])
    probabilities = np.asarray(jax.nn.softmax(output.logits[:, 0]))
    similarity = None
    if isinstance(output.cell, CellOutput):
        similarity = memory_maps(jax.tree.map(lambda leaf: np.asarray(leaf[:, 0]), output.cell.trace)).keys
    numbers = np.cumsum(~asked)
    found = []
    for step in np.flatnonzero(asked):
        best = np.argsort(-probabilities[step])[:_SHOWN]
        answers = [(task.answers[place], float(probabilities[step, place])) for place in best]
        sentences = []
        if similarity is not None:
            before = np.flatnonzero(~asked[:step])
            nearest = before[np.argsort(-similarity[step, before])][:_SHOWN]
            sentences = [(float(similarity[step, place]), int(numbers[place]), texts[place]) for place in nearest]
        found.append(Answer(texts[step], answers, sentences))
    return found


def format_answer(answer: Answer) -> str:
    """Returns the question, a line of answers, and a line per sentence."""
    answers = "   ".join(f"{text} {probability:.1%}" for text, probability in answer.answers)
    lines = [f"  {cosine:5.2f}  {number:3d} {text}" for cosine, number, text in answer.sentences]
    return "\n".join([f"? {answer.question}", f"= {answers}", *lines])


def _clean(line: str) -> str:
    """Returns a line without the number in front, and without the text after a question mark."""
    text = re.sub(r"^\s*\d+\s+", "", line).strip()
    return text[: text.index("?") + 1] if "?" in text else text
