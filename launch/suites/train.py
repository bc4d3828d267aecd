"""Trains the runs of a suite, in one process or divided between several."""

import ast
import contextlib
import fnmatch
import json
import math
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launch.runs.plain import plain_config
from launch.runs.workdir import SUMMARY, TUNING, claim, continued_at, read_summary, settings_after_fault, write_json
from launch.suites.runs import Suite, SuiteRun
from mnm_jax._files import lock_folder
from mnm_jax.training import TrainingFault

_CHOSEN_BY = "valid/accuracy"


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
    return {label: run.change(changes) for label, run in chosen.items()}


def command(run: SuiteRun, workdir: pathlib.Path) -> str:
    """Returns the command that trains one run of a suite alone."""
    changes = (f"--config.{name}={value}" for name, value in run.changes.items())
    words = ["python", "-m", "launch.train", f"--config=launch/configs/{run.recipe}", f"--workdir={workdir}"]
    return shlex.join([*words, *changes])


def plan(suite: Suite, workdir: pathlib.Path) -> str:
    """Returns two lines per run, its state and its command; an unfinished run follows those that select its setting."""
    lines = []
    for label, run in suite.items():
        summary = _finished(run, workdir / label)
        state, scores = "finished" if summary else "to do", _scores(workdir / label)
        # The scores are added after the run ends.
        missing = [trial for value, trial in trials(run, workdir / label).items() if value not in scores]
        for trial, folder in missing:
            lines += [f"# {'finished' if _finished(trial, folder) else 'to do'}", command(trial, folder)]
        if run.tuning and missing:
            state = f"to do, with the best {run.tuning.name}"
        else:
            run = _as_continued(choose_setting(run, scores), workdir / label)
        lines += [f"# {state}", command(run, workdir / label)]
    return "\n".join(lines)


def train_all(suite: Suite, workdir: pathlib.Path, train: Callable[..., Any]) -> list[str]:
    """Trains the runs that are neither finished nor being trained by another process.

    For a run with a `Tuning`, the runs that select its setting train first, in `workdir / label / "tuning"`; the run's
    summary has their validation accuracies as `tuning`. A run that stops at a NaN or an infinite number is reported on
    stderr, and the next run trains; one that continued from there with other settings (`--after_fault`) keeps them.
    Runs of other processes are tried again at the end, since they may have ended.

    Args:
      suite: runs by label; each trains in `workdir / label`.
      workdir: folder of the runs.
      train: called as `train(config, folder, command=...)` for each run, such as `launch.train.run`.

    Returns:
      Labels of the runs that another process still trains.

    Raises:
      ValueError: if a folder holds a run of another config, finished or not. Other errors of `train` pass through, at
        the first run that fails.
    """
    busy = _train_free(suite, workdir, train)
    return _train_free({label: suite[label] for label in busy}, workdir, train)


def _train_free(suite: Suite, workdir: pathlib.Path, train: Callable[..., Any]) -> list[str]:
    """Trains the runs that no other process trains, and returns the labels of the others."""
    busy = []
    for label, run in suite.items():
        folder = workdir / label
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock_folder(folder))
            except BlockingIOError:
                busy.append(label)
                continue
            scores = _scores(folder)
            for value, (trial, place) in trials(run, folder).items():
                if value in scores:
                    continue
                _train(trial, place, train)
                found = read_summary(place)
                scores[value] = found["metrics"][_CHOSEN_BY]["mean"] if found else None
            selected = choose_setting(run, scores)
            run = _as_continued(selected, folder)
            if run is not selected:
                print(f"{folder}: continued after a fault with other settings, which it keeps: {command(run, folder)}")
            _train(run, folder, train)
            if (summary := read_summary(folder)) and summary.get(TUNING, {}) != scores:
                write_json(folder / SUMMARY, {**summary, TUNING: scores})
    return busy


def _scores(folder: pathlib.Path) -> dict[str, float | None]:
    """Returns the validation accuracies that selected a run's setting; empty if no summary has them.

    A run that continues to more updates has them in an earlier summary only, until it ends.
    """
    names = [SUMMARY, *(f"summary_{steps}.json" for steps in reversed(continued_at(folder)))]
    found = ((read_summary(folder, name) or {}).get(TUNING) for name in names)
    return next((dict(scores) for scores in found if scores), {})


def trials(run: SuiteRun, folder: pathlib.Path) -> dict[str, tuple[SuiteRun, pathlib.Path]]:
    """Returns the runs that select a setting of `run`, and their folders, by value of the setting."""
    if run.tuning is None:
        return {}
    name, values, changes = run.tuning
    key = name.rpartition(".")[2]
    return {str(v): (run.change({**changes, name: v}), folder / TUNING / f"{key}={v}") for v in values}


def choose_setting(run: SuiteRun, scores: Mapping[str, float | None]) -> SuiteRun:
    """Returns a run with the value of its tuned setting that has the highest score; at equal scores the last value.

    A trial that stopped at a NaN or an infinite number has the score None, which is the lowest.
    """
    if run.tuning is None:
        return run

    def score(value: Any) -> float:
        found = scores[str(value)]
        return -math.inf if found is None else found

    return run.change({run.tuning.name: max(reversed(run.tuning.values), key=score)})


def _as_continued(run: SuiteRun, folder: pathlib.Path) -> SuiteRun:
    """Returns a run with the settings with which it continued after a fault; the same run if it did not."""
    changes = settings_after_fault(folder, plain_config(run.config))
    return run.change(changes) if changes else run


def _train(run: SuiteRun, folder: pathlib.Path, train: Callable[..., Any]) -> None:
    """Trains a run unless it is finished, and reports a NaN or an infinite number on stderr."""
    if read_summary(folder):
        claim(folder, plain_config(run.config))  # reopens the run if its number of updates was increased
    if _finished(run, folder):
        return
    print(f"{folder}: {command(run, folder)}", flush=True)
    try:
        train(run.config, folder, command=command(run, folder))
    except TrainingFault as error:
        print(f"{folder}: {error}", file=sys.stderr)


def _finished(run: SuiteRun, folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the summary of a run that has all its updates; None if it is missing, damaged or of fewer updates."""
    summary = read_summary(folder)
    return summary if summary and summary["steps"] == run.config.training.steps else None


def _parse(value: str) -> Any:
    """Returns a value spelled as in JSON or in Python, such as a number, a bool, None or a list; or else the text."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, TypeError):
            return read(value)
    return value
