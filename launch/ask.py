"""Tells a trained bAbI model a story and asks it questions.

    python -m launch.ask --workdir=runs/babi/chain-p --story=story.txt
    python -m launch.ask --workdir=runs/babi/chain-p < story.txt

One sentence a line; a line with a question mark is a question, of which what comes after the mark is left out, so that
lines of the bAbI files may be given as they are:

    Mary moved to the bathroom.
    John went to the hallway.
    Where is Mary?

Each question is answered with the most probable answers, and with the sentences whose write key its read key was most
like (cosine, mean over heads: a row of the memory map). The story may go on after a question.
"""

import os
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from launch.errors import one_line_errors, parse_flags
from launch.runs.build import build_parts
from launch.runs.workdir import read_config
from mnm_jax.analysis import memory_maps
from mnm_jax.cells import CellOutput
from mnm_jax.training import SequenceModel, load_params, split_model
from tasks.babi import Babi

_SHOWN = 3  # answers and sentences of each question


class Answer(NamedTuple):
    """question: its text. answers: (answer, probability), the most probable first. sentences: (cosine, number from 1,
    text), the most alike first; empty for a model without a memory."""

    question: str
    answers: list[tuple[str, float]]
    sentences: list[tuple[float, int, str]]


def load(workdir: str | os.PathLike, seed: int = 0) -> tuple[Babi, SequenceModel]:
    """The task and the trained model of a run. seed: which of its seeds, from 0.

    Raises:
        FileNotFoundError: no run, no checkpoint or no data. ValueError: a run of another task, no such seed, or damage.
    """
    config = read_config(workdir)
    task, make_model, training = build_parts(config)
    if not isinstance(task, Babi):
        raise ValueError(f"{workdir} is a run of the task {task.name}; only a model of babi can be asked.")
    if not 0 <= seed < training.seeds:
        raise ValueError(f"seed must be from 0 to {training.seeds - 1} in {workdir}, got {seed=}.")
    params, _ = load_params(workdir, make_model)
    return task, nnx.merge(split_model(make_model), jax.tree.map(lambda leaf: jnp.asarray(leaf[seed]), params))


def ask(task: Babi, model: SequenceModel, lines: Iterable[str]) -> list[Answer]:
    """The answer to every question among the lines, each asked about the sentences before it.

    Raises:
        ValueError: no question, a word that the model does not know, or a sentence that is too long.
    """
    texts = [text for text in map(_clean, lines) if text]
    asked = np.array([text.endswith("?") for text in texts])
    if not asked.any():
        raise ValueError("the story has no question: end a line with a question mark.")
    words = task.encode([tuple(text.rstrip("?. ").lower().split()) for text in texts])
    output = model(jnp.asarray(words)[:, None], None, jnp.asarray(asked)[:, None])
    probabilities = np.asarray(jax.nn.softmax(output.logits[:, 0]))
    alike = None
    if isinstance(output.cell, CellOutput):
        alike = memory_maps(jax.tree.map(lambda leaf: np.asarray(leaf[:, 0]), output.cell.trace)).keys
    numbers = np.cumsum(~asked)
    found = []
    for step in np.flatnonzero(asked):
        best = np.argsort(-probabilities[step])[:_SHOWN]
        answers = [(task.answers[place], float(probabilities[step, place])) for place in best]
        told = np.flatnonzero(~asked[:step])
        sentences = []
        if alike is not None:
            nearest = told[np.argsort(-alike[step, told])][:_SHOWN]
            sentences = [(float(alike[step, place]), int(numbers[place]), texts[place]) for place in nearest]
        found.append(Answer(texts[step], answers, sentences))
    return found


def format_answer(answer: Answer) -> str:
    """The question, a line of answers, and a line a sentence."""
    answers = "   ".join(f"{text} {probability:.1%}" for text, probability in answer.answers)
    lines = [f"  {alike:5.2f}  {number:3d} {text}" for alike, number, text in answer.sentences]
    return "\n".join([f"? {answer.question}", f"= {answers}", *lines])


def _clean(line: str) -> str:
    """Without the number in front, and without what follows a question mark."""
    text = re.sub(r"^\s*\d+\s+", "", line).strip()
    return text[: text.index("?") + 1] if "?" in text else text


def _read(path: str | None) -> list[str]:
    if path is not None:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    if sys.stdin.isatty():
        print("One sentence a line, questions with a question mark; end with Ctrl-D.", file=sys.stderr)
    return sys.stdin.read().splitlines()


def main(argv: list[str]) -> None:
    with one_line_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; give the story as --story=FILE.")
        task, model = load(_WORKDIR.value, _SEED.value)
        print("\n\n".join(map(format_answer, ask(task, model, _read(_STORY.value)))))


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    _STORY = flags.DEFINE_string("story", None, "File with the story and its questions; the terminal if left out.")
    _SEED = flags.DEFINE_integer("seed", 0, "Which of the seeds of the run, from 0.")
    app.run(main, flags_parser=parse_flags)
