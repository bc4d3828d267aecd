"""Trains a model on a task, or goes on with the run in a workdir.

    python -m launch.train --config=launch/configs/dictionary.py --workdir=runs/dictionary [--config.KEY=VALUE ...]

On several hosts the same command on each, with `--coordinator=HOST:PORT --num_processes=N --process_id=I`, or
`--coordinator=auto` where the environment tells these (TPU pods, SLURM); the workdir is one that all of them see.

The workdir gets `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `figures/` and at last `params.npz`
(the parameters, all that `launch.evaluate` needs beside the config) and `summary.json`.
"""

import json
import os
import pathlib
import platform
import shlex
import sys
from typing import Any

import flax
import jax
import jaxlib
import optax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

import mnm_jax
from launch.errors import one_line_errors, parse_flags
from launch.report import report_run
from launch.reporting.task_errors import end_table
from launch.runs.build import build_parts, count_parameters
from launch.runs.connect import connect
from launch.runs.metrics import summarise
from launch.runs.size import measure, report
from launch.runs.workdir import CONFIG, SUMMARY, claim, write_json
from mnm_jax.training import PARALLEL, load_params, save_params, train
from mnm_jax.training import _hosts as hosts


def run(
    config: ConfigDict, workdir: str | os.PathLike, parallel: str = "jit", command: str | None = None
) -> dict[str, Any]:
    """Trains (or resumes) and returns what it writes to `summary.json`; prints the table and draws the figures.

    summary: task, model, seeds (how many), steps, seconds (of all starts), command, devices and processes (how many),
    versions, parameters (of one seed), config, metrics `{name: {mean, std, per_seed}}` at the last step.

    Args:
        config: sections task, model and training, see `launch.runs.build`.
        workdir: folder of the run; one config only.
        parallel: "jit", "pmap" or "fsdp", see `mnm_jax.training.train`.
        command: for the summary; None: that of this process.

    Raises:
        ValueError: a config that does not hold together, or a workdir of another config; the workdir is untouched.
        FileNotFoundError: missing data. TrainingFault, Interrupted: see `mnm_jax.training.train`.
    """
    plain = json.loads(json.dumps(config.to_dict()))  # as it will be read back: tuples are lists
    task, make_model, training = build_parts(plain)
    # Making the model without its numbers finds wrong sizes and missing data before anything is written.
    parameters = count_parameters(make_model)

    workdir = pathlib.Path(workdir)
    new = hosts.in_turn(lambda: claim(workdir, plain))
    if hosts.is_first():
        print(report(measure(make_model, task), training), flush=True)
    try:
        result = train(task, make_model, training, workdir, parallel=parallel)
    except ValueError:
        if new and not (workdir / "checkpoints").exists():
            (workdir / CONFIG).unlink()  # nothing was trained: leave the workdir to the corrected config
        raise
    summary = {
        "task": task.name,
        "model": plain["model"]["name"],
        "seeds": training.seeds,
        "steps": result.steps,
        "seconds": result.seconds,
        "command": command or shlex.join(sys.orig_argv),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "versions": versions(),
        "parameters": parameters,
        "config": plain,
        "metrics": summarise(result.metrics),
    }
    if hosts.is_first():
        save_params(workdir, *load_params(workdir, make_model))
        write_json(workdir / SUMMARY, summary)
        print(end_table(summary["metrics"], range(training.seed, training.seed + training.seeds)))
        report_run(workdir)
    hosts.wait("the summary is written")
    return summary


def versions() -> dict[str, str]:
    """Of Python and of the packages that a run's numbers depend on."""
    packages = {module.__name__: module.__version__ for module in (jax, jaxlib, flax, optax, mnm_jax)}
    return {"python": platform.python_version()} | packages


def main(argv: list[str]) -> None:
    with one_line_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; settings are given as --config.KEY=VALUE.")
        connect(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        run(_CONFIG.value, _WORKDIR.value, _PARALLEL.value)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", help_string="The recipe: a file of launch/configs.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
    _PARALLEL = flags.DEFINE_enum("parallel", "jit", PARALLEL, "Who divides the work over the devices, and what.")
    _COORDINATOR = flags.DEFINE_string("coordinator", None, "Of several processes: HOST:PORT of process 0, or auto.")
    _NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.")
    _PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)
