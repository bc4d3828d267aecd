"""Trains the runs of a suite, in one process or divided between several."""

import contextlib
import fnmatch
import json
import pathlib
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from launch.runs.workdir import SUMMARY, claim
from launch.suites.runs import Suite, SuiteRun, make_run
from mnm_jax._files import lock_folder


def choose(suite: Suite, only: str, settings: Sequence[str]) -> Suite:
    """Returns the runs whose label matches the pattern `only`, with settings changed in all of them.

    Args:
      suite: runs by label.
      only: a shell pattern, such as "copy/*".
      settings: each SECTION.KEY=VALUE, such as "training.seeds=2".

    Raises:
      ValueError: if no label matches, or a setting is malformed or unknown.
    """
    chosen = {label: run for label, run in suite.items() if fnmatch.fnmatchcase(label, only)}
    if not chosen:
        raise ValueError(f"no label matches {only!r}; the labels are {', '.join(suite)}.")
    changes = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or "." not in name:
            raise ValueError(f"a setting is SECTION.KEY=VALUE, such as training.seeds=2, got {setting!r}.")
        changes[name] = _parse(value)
    return {label: make_run(run.recipe, {**run.changes, **changes}) for label, run in chosen.items()}


def command(run: SuiteRun, workdir: pathlib.Path) -> str:
    """Returns the command that trains one run of a suite alone."""
    changes = (f"--config.{name}={value}" for name, value in run.changes.items())
    words = ["python", "-m", "launch.train", f"--config=launch/configs/{run.recipe}", f"--workdir={workdir}"]
    return shlex.join([*words, *changes])


def plan(suite: Suite, workdir: pathlib.Path) -> str:
    """Returns two lines per run: its state and its command."""
    lines = []
    for label, run in suite.items():
        state = "finished" if (workdir / label / SUMMARY).is_file() else "to do"
        lines += [f"# {state}", command(run, workdir / label)]
    return "\n".join(lines)


def train_all(suite: Suite, workdir: pathlib.Path, train: Callable[..., Any]) -> list[str]:
    """Trains the runs that are neither finished nor being trained by another process.

    Args:
      suite: runs by label; each trains in `workdir / label`.
      workdir: folder of the runs.
      train: called as `train(config, folder, command=...)` for each run, such as `launch.train.run`.

    Returns:
      Labels of the runs that another process trains.

    Raises:
      ValueError: if a folder holds a run of another config, finished or not. Errors of `train` pass through, at the
        first run that fails.
    """
    busy = []
    for label, run in suite.items():
        folder = workdir / label
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock_folder(folder))
            except BlockingIOError:
                busy.append(label)
                continue
            if (folder / SUMMARY).is_file():
                claim(folder, json.loads(json.dumps(run.config.to_dict())))
            if not (folder / SUMMARY).is_file():  # unfinished, or continued because its number of updates was increased
                print(f"{label}: {command(run, folder)}", flush=True)
                train(run.config, folder, command=command(run, folder))
    return busy


def _parse(value: str) -> Any:
    """Returns a number, true, false or a list as in JSON; anything else is text."""
    try:
        return json.loads(value)
    except ValueError:
        return value
