"""Evaluates the newest checkpoint of a run on the split "test", and prints the table.

    python -m launch.evaluate --workdir=runs/dictionary

Without checkpoints the parameters are those of `params.npz`. A folder of runs side by side, one a seed, is evaluated as
one run of all their seeds. A task that is many, as bAbI, gets a table of the error of each in %, for every seed, with
mean, deviation and best: tasks above 5% count as failed.
"""

import os
import pathlib

import numpy as np
from absl import app, flags

from launch.errors import one_line_errors, parse_flags
from launch.reporting.task_errors import end_table
from launch.runs.build import build_parts, build_training
from launch.runs.metrics import natural, summarise
from launch.runs.workdir import CONFIG, read_config
from mnm_jax.training import evaluate, load_params, split_model


def evaluate_run(workdir: str | os.PathLike) -> tuple[dict[str, np.ndarray], int]:
    """Test metrics `[S]` by name of the newest checkpoint of a run, and its step; changes nothing on disk.

    Raises:
        FileNotFoundError: no run, no checkpoint or no data. ValueError: a damaged config or checkpoint.
    """
    task, make_model, training = build_parts(read_config(workdir))
    params, step = load_params(workdir, make_model)
    return evaluate(split_model(make_model), params, task, "test", training.batch_size), step


def evaluation_table(workdir: str | os.PathLike) -> str:
    """What this program prints, of a run or of a folder of runs, one a seed; raises as `evaluate_run`."""
    workdir = pathlib.Path(workdir)
    members = sorted((path.parent for path in workdir.glob(f"*/{CONFIG}")), key=lambda path: natural(path.name))
    runs = members if members and not (workdir / CONFIG).exists() else [workdir]
    evaluated = [evaluate_run(run) for run in runs]
    steps = " and ".join(dict.fromkeys(f"{step:,}" for _, step in evaluated))
    metrics = {name: np.concatenate([found[name] for found, _ in evaluated]) for name in evaluated[0][0]}
    seeds = []
    for training in (build_training(read_config(run)["training"]) for run in runs):
        seeds += range(training.seed, training.seed + training.seeds)
    return f"{workdir}, step {steps}\n{end_table(summarise(metrics), seeds)}"


def main(argv: list[str]) -> None:
    with one_line_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; give the run as --workdir=DIR.")
        print(evaluation_table(_WORKDIR.value))


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    app.run(main, flags_parser=parse_flags)
