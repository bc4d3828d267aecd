"""Runs a whole sweep, from its space to the files of the leaderboard."""

import json
import pathlib
import runpy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from launch.reporting.text_table import format_columns, format_markdown
from launch.runs.build import build_parts
from launch.runs.workdir import write_json
from launch.sweep.space import PlannedTrial, TrialSpec, choose_trials, expand, plan
from mnm_jax._files import whole_file

if TYPE_CHECKING:
    from launch.sweep.tuning import Host


def read_space(path: str) -> Mapping[str, Any]:
    """Returns the space of a JSON file, or `SPACE` of a Python file.

    Raises:
      ValueError: if the Python file has no `SPACE`.
      FileNotFoundError: if there is no such file.
    """
    if not path.endswith(".py"):
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    content = runpy.run_path(path)
    if "SPACE" not in content:
        raise ValueError(f"{path} has no SPACE.")
    return content["SPACE"]


def plan_trials(
    space: Mapping[str, Any], number: int | None, config: ConfigDict, flags: Sequence[str], workdir: pathlib.Path
) -> tuple[list[TrialSpec], list[PlannedTrial]]:
    """Returns the trials of a sweep, and the same trials ready to start.

    Args:
      space: the search space.
      number: number of trials drawn from it; None: all.
      config: the config of the recipe.
      flags: words of the command line that choose and change the recipe.
      workdir: folder of the sweep.

    Raises:
      ValueError: if the space or a value of it is wrong.
    """
    specs = choose_trials(expand(space), number)
    planned = [plan(spec, config, flags, workdir) for spec in specs]
    for trial in planned:
        build_parts(trial.config)
    return specs, planned


def run_sweep(
    specs: Sequence[TrialSpec],
    planned: Sequence[PlannedTrial],
    config: ConfigDict,
    workdir: pathlib.Path,
    host: "Host",
    *,
    metric: str,
    largest: bool,
    **options: Any,
) -> str:
    """Runs the unfinished trials, writes the leaderboard's files into `workdir`, and returns the table.

    Args:
      specs: the trials.
      planned: the same trials, ready to start.
      config: the config of the recipe.
      workdir: folder of the sweep.
      host: resources of a trial.
      metric: trials are compared by the area under its curve.
      largest: whether a larger metric is better.
      **options: see `launch.sweep.tuning.run`.
    """
    from launch.sweep import leaderboard, tuning

    errors = tuning.run(planned, workdir, metric=metric, largest=largest, host=host, **options)
    names = dict.fromkeys(name for spec in specs for name in spec.changes)
    defaults = {name: config[name.split(".", 1)[0]][name.split(".", 1)[1]] for name in names}
    rows = leaderboard.make_rows(specs, defaults, workdir / "trials", metric, errors, largest=largest)
    write_json(workdir / "leaderboard.json", rows)
    text = leaderboard.describe(rows)
    with whole_file(workdir / "leaderboard.md") as file:
        file.write(format_markdown(text) + "\n")
    leaderboard.draw(rows, metric, workdir / "leaderboard.png")
    return format_columns(text)
