"""Trains one run: checks its config, runs the training loop, and writes the files at its end."""

import os
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from launch.runs.build import build_parts
from launch.runs.metrics import summarise
from launch.runs.plain import plain_config
from launch.runs.size import describe, measure
from launch.runs.versions import commit_at_start, versions
from launch.runs.workdir import (
    CONFIG,
    SUMMARY,
    check_claimed,
    claim,
    continued_at,
    read_earlier,
    read_summary,
    write_json,
)
from mnm_jax.training import (
    TrainConfig,
    TrainingFault,
    TrainResult,
    common_errors,
    first_process_first,
    is_first_process,
    load_params,
    lock_workdir,
    save_params,
    train,
)


def train_run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    parallel: str = "jit",
    command: str | None = None,
    after_fault: bool = False,
) -> dict[str, Any]:
    """Trains or resumes a run and returns the content of its `summary.json`.

    A finished run whose config has a larger `training.steps` continues, see `mnm_jax.training.train`.

    The summary holds task, model, number of seeds, steps, seconds (over all restarts), command, numbers of devices and
    processes, the commit at the start of the process that ended the run, versions, parameters (of one seed), config,
    and metrics `{name: {mean, std, per_seed}}` at the last update. For a run that was continued after it was finished,
    `continued_at` lists its numbers of updates at that time; for one that continued after a fault with other settings,
    `earlier_configs` holds the earlier configs.

    Args:
      config: sections task, model and training, see `launch.runs.build`.
      workdir: folder of the run; it takes one config only.
      parallel: "jit", "pmap" or "fsdp", see `mnm_jax.training.train`.
      command: command line for the summary; None: the command line of this process.
      after_fault: continue a run that stopped at a fault, see `launch.runs.workdir.claim`.

    Raises:
      BlockingIOError: if another process trains in the workdir; the message names it.
      ValueError: if the config is inconsistent, or the workdir holds a run of another config; nothing is written
        except the lock of the folder.
      FileNotFoundError: if data is missing.
      TrainingFault: if a number is not finite, see `mnm_jax.training.train`.
      Interrupted: if a signal arrives; the state is saved.
    """
    commit_at_start()  # before others change the files
    with common_errors():  # wrong settings and missing data, before a file is written
        plain = plain_config(config)
        task, make_model, training = build_parts(plain)
        size = measure(make_model, task, training)

    workdir = pathlib.Path(workdir)
    with lock_workdir(workdir):
        new = first_process_first(lambda: _claim(workdir, plain, after_fault))
        finished = read_summary(workdir)
        if finished and not (workdir / "checkpoints").exists():
            if is_first_process():
                print(f"{workdir} is a finished run without checkpoints: nothing is trained; take another workdir.")
            return finished
        if not finished and (workdir / SUMMARY).is_file() and not (workdir / "checkpoints").exists():
            raise ValueError(f"{workdir / SUMMARY} is damaged or incomplete; restore it, or remove it to train again.")
        earlier = [steps for steps in continued_at(workdir) if steps < training.steps]
        if is_first_process():
            if jax.process_count() > 1:
                print(f"{jax.process_count()} processes, {jax.device_count()} devices")
            if earlier:
                print(_describe_continuing(earlier[-1], training))
            print(describe(size, training), flush=True)
        try:
            result = train(task, make_model, training, workdir, parallel=parallel)
        except ValueError:
            if new and not (workdir / "checkpoints").exists():
                (workdir / CONFIG).unlink()  # nothing was trained: the corrected config may take the workdir
            raise
        except TrainingFault as error:
            raise TrainingFault(f"{error} {_after_fault(workdir)}") from error
        summary = _summarise(result, plain, task.name, size.parameters, command)
        more = {"continued_at": earlier, "earlier_configs": read_earlier(workdir)}
        summary |= {name: value for name, value in more.items() if value}
        return first_process_first(lambda: _finish(workdir, finished, summary, make_model))


def _claim(workdir: pathlib.Path, config: dict[str, Any], after_fault: bool) -> bool:
    """Claims the workdir in the first process, and checks it in the others; returns whether this process made it."""
    if is_first_process():
        return claim(workdir, config, after_fault=after_fault)
    check_claimed(workdir, config)
    return False


def _finish(
    workdir: pathlib.Path, finished: dict[str, Any] | None, summary: dict[str, Any], make_model: Callable
) -> dict[str, Any]:
    """Writes the parameters and the summary of a run that has ended, and returns the summary that counts.

    A run that had ended before keeps its summary, with commit, versions and command of the start that trained it,
    unless this start has more metrics or more updates.
    """
    if finished and finished["steps"] == summary["steps"]:
        before, now = (found["metrics"].keys() for found in (finished, summary))
        if lacking := sorted(before - now):
            logging.warning("%s is kept: this start of the run has no %s.", workdir / SUMMARY, ", ".join(lacking))
            return finished
        if now == before:
            summary = finished
    if is_first_process():
        save_params(workdir, *load_params(workdir, make_model))
        if summary is not finished:
            write_json(workdir / SUMMARY, summary)
    return summary


def _after_fault(workdir: pathlib.Path) -> str:
    return (
        f"`python -m launch.find_nan --workdir={shlex.quote(str(workdir))}` names the operation. To continue from the "
        "last checkpoint before the fault, add --after_fault and a lower --config.training.learning_rate or clip_norm."
    )


def _summarise(
    result: TrainResult, config: dict[str, Any], task: str, parameters: int, command: str | None
) -> dict[str, Any]:
    return {
        "task": task,
        "model": config["model"]["name"],
        "seeds": config["training"].get("seeds", 1),
        "steps": result.steps,
        "seconds": result.seconds,
        "command": command or shlex.join(sys.orig_argv),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "commit": commit_at_start(),
        "versions": versions(),
        "parameters": parameters,
        "config": config,
        "metrics": summarise(result.metrics),
    }


def _describe_continuing(before: int, training: TrainConfig) -> str:
    """Returns a line on a run of `before` updates that continues."""
    line = f"continues the run of {before:,} updates to {training.steps:,} updates"
    if training.schedule != "constant":
        rate, name = training.learning_rate_at(before), training.schedule
        line += f"; the learning rate rises from 0 to {rate:.3g}, that of a {name} over {training.steps:,} updates"
    return f"{line}."
