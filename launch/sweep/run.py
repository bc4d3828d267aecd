"""Runs a whole sweep, from its space to the files of the leaderboard."""

import functools
import json
import os
import pathlib
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from launch.reporting.text_table import format_columns, format_markdown
from launch.runs.build import build_parts
from launch.runs.plain import plain_config
from launch.runs.workdir import write_json
from launch.sweep.space import PlannedTrial, choose_trials, expand, plan
from mnm_jax._extras import extra
from mnm_jax._files import whole_file

_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": Ray listens on the loopback interface, on every system
_MOST_CONCURRENT = 96  # the parts of Ray's smallest unit, 1/10,000 of a resource, are counted exactly up to this number


class Host(NamedTuple):
    """Resources of a trial.

    Attributes:
      resources: CPU, GPU and TPU of each host.
      hosts: number of hosts, joined by Ray Train if several.
      topology: topology of a TPU slice, such as "4x4"; `hosts` is then the number of its hosts.
      accelerator: accelerator of the TPU slice, such as "TPU-V6E".
    """

    resources: dict[str, float]
    hosts: int = 1
    topology: str | None = None
    accelerator: str | None = None

    @property
    def joined(self) -> bool:
        """Returns whether Ray Train joins the hosts of a trial."""
        return self.hosts != 1 or self.topology is not None

    @property
    def wanted(self) -> dict[str, float]:
        """Returns each host's resources, without those whose number is 0."""
        return {name: number for name, number in self.resources.items() if number}

    @property
    def start(self) -> Callable[..., Any] | None:
        """Function that starts a trial, for the field `start` of `Where`; None for a process on one host."""
        if not self.joined:
            return None
        from launch.sweep.slices import start_slice

        return functools.partial(start_slice, self)

    def bundles(self, concurrent: int | None) -> list[dict[str, float]]:
        """Returns the resources that Tune reserves for a trial; for several hosts Ray Train reserves theirs.

        Each trial reserves a part of the head node, of which there is one, so that at most `concurrent` trials run
        whenever the sweep is started. Tune restores its own limit from the first start.

        Raises:
          ValueError: if `concurrent` is not from 1 to 96.
        """
        if concurrent is not None and not 1 <= concurrent <= _MOST_CONCURRENT:
            raise ValueError(
                f"concurrent must be from 1 to {_MOST_CONCURRENT}, got {concurrent}; leave it out for as many trials "
                "as fit."
            )
        part = 0.001 if concurrent is None else 9990 // concurrent / 10_000  # Ray Train needs another 0.001
        head = {"node:__internal_head__": part}
        if self.joined:
            return [head]
        return [self.wanted] if concurrent is None else [self.wanted, head]


def read_space(path: str) -> Mapping[str, Any]:
    """Returns the space of a JSON file, or `SPACE` of a Python file.

    Raises:
      ValueError: if the file is no JSON, or a Python file has no `SPACE`.
      FileNotFoundError: if there is no such file.
    """
    if not path.endswith(".py"):
        try:
            return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}.") from error
    content = runpy.run_path(path)
    if "SPACE" not in content:
        raise ValueError(f"{path} has no SPACE.")
    return content["SPACE"]


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
        build_parts(trial.config)
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
    if address is None:
        os.environ.setdefault(_CLUSTER, "0")  # Ray reads it when it is imported
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
