"""Runs a whole sweep, from its space to the files of the leaderboard."""

import contextlib
import json
import os
import pathlib
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from launch.reporting.text_table import format_columns, format_markdown
from launch.runs.build import build_parts, count_parameters
from launch.runs.plain import plain_config
from launch.runs.workdir import write_json
from launch.sweep.host import Host
from launch.sweep.space import PlannedTrial, choose_trials, expand, plan
from mnm_jax._extras import extra
from mnm_jax._files import whole_file

_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": Ray listens on the loopback interface, on every system
_KILL = "RAY_kill_child_processes_on_worker_exit"  # "0": the runs get the SIGTERM of `trial.Process`, and save


def read_space(path: str) -> Mapping[str, Any]:
    """Returns the space of a JSON file, or `SPACE` of a Python file.

    Raises:
      ValueError: if the file is no JSON, or a Python file has an error or no `SPACE`.
      FileNotFoundError: if there is no such file.
    """
    if not path.endswith(".py"):
        try:
            return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}.") from error
    try:
        content = runpy.run_path(path)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines = [error.lineno]
        if not lines:  # there is no such file
            raise
        raise ValueError(f"{path}, line {lines[-1]}: {type(error).__name__}: {error}") from error
    if "SPACE" not in content:
        raise ValueError(f"{path} has no SPACE.")
    return content["SPACE"]


def is_smaller_better(metric: str) -> bool:
    """Returns whether smaller values of a metric are better: its name ends in "loss" or "error"."""
    return metric.endswith(("loss", "error"))


def plan_trials(
    space: Mapping[str, Any], number: int | None, config: ConfigDict, words: Sequence[str], workdir: pathlib.Path
) -> list[PlannedTrial]:
    """Returns the trials of a sweep, ready to start.

    The unchanged recipe is the first; a trial of the space that is equal to it is left out.

    Args:
      space: the search space.
      number: number of trials drawn from it, before equal ones are left out; None: all.
      config: the config of the recipe.
      words: words of the command line that choose and change the recipe.
      workdir: folder of the sweep.

    Raises:
      ValueError: if the space or a value of it is wrong.
    """
    trials = [plan(changes, config, words, workdir) for changes in choose_trials(expand(space), number)]
    for trial in trials:
        make_model = build_parts(trial.config).make_model
        with contextlib.suppress(OSError):  # its data may be on the hosts of the trials only
            count_parameters(make_model)
    recipe, *others = trials
    return [recipe, *(trial for trial in others if trial.config != recipe.config)]


def run_sweep(
    trials: Sequence[PlannedTrial],
    config: ConfigDict,
    workdir: pathlib.Path,
    host: Host,
    *,
    metric: str,
    largest: bool,
    address: str | None = None,
    **options: Any,
) -> str:
    """Runs the unfinished trials, writes the leaderboard's files into `workdir`, and returns the table.

    Args:
      trials: the trials.
      config: the config of the recipe.
      workdir: folder of the sweep.
      host: resources of a trial.
      metric: trials are compared by the area under its curve.
      largest: whether a larger metric is better.
      address: address of a Ray cluster; None: this machine alone, where Ray listens on the loopback interface.
      **options: see `launch.sweep.tuning.run`.

    Raises:
      ImportError: if Ray is not installed.
    """
    if address is None:  # Ray reads these when it is imported
        os.environ.setdefault(_CLUSTER, "0")
        if sys.platform == "linux":
            os.environ.setdefault(_KILL, "0")
    with extra("sweep"):
        from launch.sweep import leaderboard, tuning

    errors = tuning.run(trials, workdir, metric=metric, largest=largest, host=host, address=address, **options)
    names = dict.fromkeys(name for trial in trials for name in trial.changes)
    recipe, parts = plain_config(config), {name: name.split(".", 1) for name in names}
    defaults = {name: recipe[section].get(key, "default") for name, (section, key) in parts.items()}
    rows = leaderboard.make_rows(trials, defaults, workdir / "trials", metric, errors, largest=largest)
    write_json(workdir / "leaderboard.json", rows)
    text = leaderboard.describe(rows)
    with whole_file(workdir / "leaderboard.md") as file:
        file.write(format_markdown(text) + "\n")
    leaderboard.draw(rows, metric, workdir / "leaderboard.png")
    return format_columns(text)
