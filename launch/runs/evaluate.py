"""Evaluation of finished and unfinished runs on the test split. Shape letter: `S` seeds."""

import contextlib
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from launch.runs.build import build_parts
from launch.runs.finished import history
from launch.runs.metrics import natural
from launch.runs.versions import commit_at_start, versions
from launch.runs.workdir import CONFIG, continued_at, read_config, read_earlier
from mnm_jax._files import whole_file
from mnm_jax.training import evaluate, load_params, split_model

_KEYS = {"run", "steps", "seeds", "commit", "versions", "metrics"}  # of a line that `write_evaluation` writes


class Evaluation(NamedTuple):
    """Test metrics of one run or of several.

    Attributes:
      metrics: values `[S]` by name, with the seeds of all runs in one array.
      seeds: numbers of the seeds, `S` of them.
      steps: updates of the checkpoint of each run.
    """

    metrics: dict[str, np.ndarray]
    seeds: list[int]
    steps: list[int]


def evaluate_run(workdir: str | os.PathLike, data_dir: str | None = None) -> tuple[dict[str, np.ndarray], int]:
    """Returns the test metrics `[S]`, by name, of a run's newest checkpoint, and its number of updates; writes nothing.

    Args:
      workdir: folder of the run.
      data_dir: folder of the task's data; None: the one that the config names.

    Raises:
      FileNotFoundError: if there is no run, no checkpoint or no data.
      ValueError: if the config or the checkpoint is damaged.
    """
    task, make_model, training = build_parts(read_config(workdir, data_dir))
    params, step = load_params(workdir, make_model)
    return evaluate(split_model(make_model), params, task, "test", training.batch_size), step


def evaluate_folder(workdir: str | os.PathLike, data_dir: str | None = None) -> Evaluation:
    """Evaluates a run, or a folder of runs that differ only in their seed; arguments as in `evaluate_run`.

    Raises:
      FileNotFoundError: as `evaluate_run`.
      ValueError: as `evaluate_run`, or if two runs differ in more than their seed, also in how they were continued, or
        have a seed in common.
    """
    commit_at_start()  # `write_evaluation` reports the program that runs, whose files may be changed meanwhile
    workdir = pathlib.Path(workdir)
    members = sorted((path.parent for path in workdir.glob(f"*/{CONFIG}")), key=lambda path: natural(path.name))
    runs = members if members and not (workdir / CONFIG).exists() else [workdir]
    histories = [history(read_config(run), read_earlier(run), continued_at(run)) for run in runs]
    for run, found in zip(runs, histories, strict=True):
        if found != histories[0]:
            raise ValueError(
                f"{run} and {runs[0]} differ in more than their seed (a setting, or how they were continued), so their "
                "metrics have no common mean: evaluate each run with its own --workdir."
            )
    seeds: list[int] = []
    for training in (build_parts(read_config(run, data_dir)).training for run in runs):
        seeds += range(training.seed, training.seed + training.seeds)
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"two runs in {workdir} have a seed in common, among {seeds}, and it would count twice: evaluate each run "
            "with its own --workdir."
        )
    evaluated = [evaluate_run(run, data_dir) for run in runs]
    metrics = {name: np.concatenate([found[name] for found, _ in evaluated]) for name in evaluated[0][0]}
    return Evaluation(metrics, seeds, [step for _, step in evaluated])


def read_evaluations(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the lines that `write_evaluation` wrote into a file; none if there is no file.

    Raises:
      ValueError: the file has other lines; the message names the first.
    """
    path = pathlib.Path(path)
    lines = []
    for number, text in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and line.keys() == _KEYS:
                lines.append(line)
                continue
        raise ValueError(f"line {number} of {path} was not written by launch.evaluate: pass another file to --out.")
    return lines


def write_evaluation(path: str | os.PathLike, workdir: str | os.PathLike, found: Evaluation) -> None:
    """Writes the mean of each metric as the line of a run in a JSONL file, in place of an older line.

    A line is `{"run", "steps", "seeds", "commit", "versions", "metrics"}`; "run" is the folder relative to the file's,
    and a mean that is not finite is null.

    Raises:
      ValueError: the file has other lines.
    """
    path = pathlib.Path(path)
    run = pathlib.Path(os.path.relpath(workdir, path.parent)).as_posix()
    lines = read_evaluations(path)
    means = {name: float(np.mean(values)) for name, values in found.metrics.items()}
    line = {
        "run": run,
        "steps": found.steps,
        "seeds": found.seeds,
        "commit": commit_at_start(),
        "versions": versions(),
        "metrics": {name: mean if math.isfinite(mean) else None for name, mean in means.items()},
    }
    lines = [other for other in lines if other["run"] != run] + [line]
    with whole_file(path) as file:
        file.writelines(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in lines)
