"""Evaluates the newest checkpoint of a run on the split "test", and prints the table.

python -m launch.evaluate --workdir=runs/dictionary

A task that is many, as bAbI, gets a table of the error of each in %, for every seed: tasks above 5% count as failed.
"""

import os

import numpy as np
from absl import app, flags

from launch.build import build_parts
from launch.errors import one_line_errors, parse_flags
from launch.table import summarise
from launch.task_errors import end_table
from launch.workdir import read_config
from mnm_jax.training import evaluate, load_params, split_model


def evaluate_run(workdir: str | os.PathLike) -> tuple[dict[str, np.ndarray], int]:
    """Test metrics `[S]` by name of the newest checkpoint of a run, and its step; changes nothing on disk.

    Raises:
        FileNotFoundError: no run, no checkpoint or no data. ValueError: a damaged config or checkpoint.
    """
    task, make_model, training = build_parts(read_config(workdir))
    params, step = load_params(workdir, make_model)
    return evaluate(split_model(make_model), params, task, "test", training.batch_size), step


def main(argv: list[str]) -> None:
    with one_line_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; give the run as --workdir=DIR.")
        metrics, step = evaluate_run(_WORKDIR.value)
        seed = read_config(_WORKDIR.value)["training"]["seed"]
        print(f"{_WORKDIR.value}, step {step}\n{end_table(summarise(metrics), seed)}")


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    app.run(main, flags_parser=parse_flags)
