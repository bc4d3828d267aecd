"""Finished runs, read from their folders or from the light form of a folder of runs."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from launch.runs.light import SUMMARIES, LightRun, read_light, write_light
from launch.runs.metrics import natural, summarise
from launch.runs.own import FOLDER
from launch.runs.workdir import CONFIG, SUMMARY, SUMMARY_KEYS, TUNING, without_places
from mnm_jax._files import LOCK
from mnm_jax.training import read_metrics

_TYPES = {"task": str, "model": str, "command": str, "seeds": int, "steps": int, "parameters": int, "metrics": dict}
_STATISTICS = {"mean", "std", "per_seed"}  # of each metric


class Run(NamedTuple):
    """A finished run.

    Attributes:
      folder: the run's folder, which need not exist for a run in the light form.
      group: parent folder, relative to the folder of runs; "" if the run is directly in the folder of runs.
      label: name of the run's folder.
      summary: content of `summary.json`.
      lines: content of `metrics.jsonl`.
    """

    folder: pathlib.Path
    group: str
    label: str
    summary: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """Returns the label, followed by the model if the label does not contain it."""
        model = self.summary["model"]
        return self.label if model in self.label else f"{self.label} ({model})"

    @property
    def place(self) -> str:
        """Returns `GROUP/LABEL`, or the label of a run without a group."""
        return f"{self.group}/{self.label}" if self.group else self.label


def read_run(folder: pathlib.Path, root: pathlib.Path) -> Run:
    """Returns the finished run in `folder`, at any depth of the folder of runs `root`.

    Raises:
      FileNotFoundError: there is no run, or one that is not finished.
      ValueError: its `summary.json` is damaged.
    """
    path = folder / SUMMARY
    if not path.is_file():
        state = "is not finished" if (folder / CONFIG).is_file() else "holds no run"
        raise FileNotFoundError(f"{folder} {state}: it has no {SUMMARY}; run the command of launch.train to its end.")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        lacking = sorted(SUMMARY_KEYS - summary.keys())
    except (ValueError, AttributeError) as error:  # JSON without keys
        raise ValueError(f"{path} is damaged (no JSON object); run its command again to write it anew.") from error
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(lacking)}; run its command again to write it anew.")
    return Run(
        folder=folder,
        group=_group(folder, root),
        label=pathlib.Path(os.path.abspath(folder)).name,
        summary=summary,
        lines=read_metrics(folder),
    )


def _group(folder: pathlib.Path, root: pathlib.Path) -> str:
    """Returns the place of a run's parent folder in the folder of runs, see `Run.group`."""
    return "/".join(folder.relative_to(root).parts[:-1])


def find_runs(root: pathlib.Path) -> tuple[list[Run], list[str]]:
    """Returns the finished runs below `root` in natural order, and one line per folder that is left out.

    A link to a run, or to a folder of runs, counts as the folder that it names, which is read once.

    The light form takes precedence: the folder of a run in the light form, which may hold its parameters, is not read.
    Runs that choose a setting of another run, in its folder "tuning", are no results and are left out without a line.

    Raises:
      ValueError: a file of the light form is damaged.
    """
    light = _light_runs(root)
    places = {run.place for run in light}
    runs, notes = [], []
    visited: set[pathlib.Path] = set()
    for name, below, files in os.walk(root, followlinks=True):
        folder = pathlib.Path(name)
        if (real := folder.resolve()) in visited:
            below.clear()
            continue
        visited.add(real)
        below.sort(key=lambda other: (folder / other).is_symlink())  # a folder's own place before links to it
        if {CONFIG, SUMMARY} & set(files):
            below.clear()
            if folder.relative_to(root).as_posix() in places:
                continue
            try:
                runs.append(read_run(folder, root))
            except (ValueError, OSError) as error:
                notes.append(str(error))
        elif LOCK in files and TUNING in below:  # only the folder of a run has a lock
            below.remove(TUNING)
    return sorted(light + runs, key=lambda run: natural(run.place)), sorted(notes)


def check_run(run: Run) -> None:
    """Raises ValueError if the summary of a run was written by another program, or holds wrong values."""
    summary, problem = run.summary, None
    config = summary.get("config", {})
    for key, kind in _TYPES.items():
        if not isinstance(summary[key], kind):
            problem = f"{key} is of type {type(summary[key]).__name__}, not {kind.__name__}"
    if problem is None:
        for name, row in summary["metrics"].items():
            if not isinstance(row, dict) or not row.keys() >= _STATISTICS or not isinstance(row["per_seed"], list):
                problem = f"the metric {name} has no {', '.join(sorted(_STATISTICS))}"
    if not isinstance(config, dict) or not all(isinstance(config[key], dict) for key in config if key != FOLDER):
        problem = "its config has no sections"
    if problem is not None:
        raise ValueError(f"{run.folder / SUMMARY} is not the summary of a run: {problem}; restore it, or move it away.")


def publish_runs(root: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """Adds the finished runs below `root` to the light form in `folder`, and returns their places.

    A run that is already in `folder` at the same place is replaced; all others stay. If `root` has a run in the light
    form and the folder in which it was trained, the folder counts.

    Raises:
      FileNotFoundError: there is no finished run below `root`.
      ValueError: a run is not finished or damaged, or a file of the light form is damaged; nothing is written.
    """
    runs, notes = find_runs(root)
    if notes:
        raise ValueError(f"cannot publish {root}: {notes[0]}")
    if not runs:
        raise FileNotFoundError(f"no finished run in {root}; check --workdir, or train first.")
    # A run that was trained on has newer numbers than its line in the light form; a shipped one has no metrics.
    trained = [read_run(run.folder, root) if (run.folder / SUMMARY).is_file() else run for run in runs]
    runs = [own if own.lines else run for own, run in zip(trained, runs, strict=True)]
    for run in runs:
        check_run(run)
    added = {run.place: LightRun(run.summary, run.lines) for run in runs}
    write_light(folder, read_light(folder) | added)
    return list(added)


def join_seeds(runs: Sequence[Run], root: pathlib.Path) -> list[Run]:
    """Returns the runs, after joining the runs of each folder that differ only in their seed into one with all seeds.

    The joined run takes the place of the folder: `GROUP/LABEL/SEED/` becomes `LABEL` in `GROUP`. Its seconds are the
    sum, and its lines of `metrics.jsonl` are those steps that all its members have. The runs of a folder stay apart if
    they differ in more than their seed, also in how they were continued, if two have a seed in common, or if a summary
    has no config. The order is the natural one of their places.
    """
    folders: dict[pathlib.Path, list[Run]] = {}
    for run in runs:
        folders.setdefault(run.folder.parent, []).append(run)
    joined = []
    for folder, members in folders.items():
        # Runs directly in the folder of runs have no folder whose place a joined run could take.
        inside = folder not in (root, root.parent)
        joined += [_join(members, root)] if inside and _differ_in_seeds(members) else members
    return sorted(joined, key=lambda run: natural(run.place))


def _differ_in_seeds(runs: Sequence[Run]) -> bool:
    """Returns whether there are several runs, trained alike except for the seed, and no seed in two of them."""
    if len(runs) == 1 or not all("config" in run.summary for run in runs):
        return False
    summaries = [run.summary for run in runs]
    histories = [history(s["config"], s.get("earlier_configs", []), s.get("continued_at", [])) for s in summaries]
    starts = [run.summary["config"].get("training", {}).get("seed", 0) for run in runs]
    seeds = [start + place for start, run in zip(starts, runs, strict=True) for place in range(run.summary["seeds"])]
    return all(found == histories[0] for found in histories) and len(set(seeds)) == len(seeds)


def _light_runs(root: pathlib.Path) -> list[Run]:
    runs = []
    for place, (summary, lines) in read_light(root).items():
        lacking = sorted(SUMMARY_KEYS - summary.keys())
        if lacking:
            raise ValueError(f"{root / SUMMARIES}: the run {place} lacks {', '.join(lacking)}; publish it again.")
        group, _, label = place.rpartition("/")
        runs.append(Run(folder=root / place, group=group, label=label, summary=summary, lines=lines))
    return runs


def history(config: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]], continued: Sequence[int]) -> list[Any]:
    """Returns all that decides how a run was trained except its seed: equal for runs that differ in their seed alone.

    Args:
      config: the run's config.
      earlier: its earlier configs, each with the number of updates after which it changed, `until`.
      continued: its numbers of updates when it was continued after it had ended.
    """
    trained = [[row["until"], without_seed(row["config"])] for row in earlier if row["until"]]  # at 0: no update made
    return [without_seed(config), trained, list(continued)]


def without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config without its seed and without the folders that it names, `PLACES`."""
    seedless = without_places(config)
    seedless.get("training", {}).pop("seed", None)
    return seedless


def _join(runs: Sequence[Run], root: pathlib.Path) -> Run:
    folder = runs[0].folder.parent
    names = set.intersection(*(set(run.summary["metrics"]) for run in runs))
    per_seed = {
        name: np.array([value for run in runs for value in run.summary["metrics"][name]["per_seed"]], np.float64)
        for name in names
    }
    commits = {run.summary["commit"] for run in runs if run.summary.get("commit")}
    summary = {
        **runs[0].summary,
        "commit": ", ".join(sorted(commits)) or None,
        "seeds": sum(run.summary["seeds"] for run in runs),
        "seconds": sum(run.summary["seconds"] for run in runs),
        "metrics": summarise(per_seed),
    }
    return Run(
        folder=folder,
        group=_group(folder, root),
        label=folder.name,
        summary=summary,
        lines=_join_lines([run.lines for run in runs]),
    )


def _join_lines(runs: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Returns the lines of the steps and metrics that all runs have, with the seeds of all runs concatenated."""
    by_step = [_merge_steps(lines) for lines in runs]
    joined = []
    for key, first in by_step[0].items():
        lines = [found[key] for found in by_step if key in found]
        if len(lines) == len(runs):
            row: dict[str, Any] = {"step": first["step"]}
            for name in first:
                values = [line[name] for line in lines if name in line]
                if len(values) == len(lines) and isinstance(values[0], list):
                    row[name] = sum(values, [])
            joined.append(row)
    return joined


def _merge_steps(lines: Sequence[dict[str, Any]]) -> dict[tuple[int, bool], dict[str, Any]]:
    """Returns the lines by step and kind, training or evaluation; lines of one step are merged, later ones count."""
    merged: dict[tuple[int, bool], dict[str, Any]] = {}
    for line in lines:
        merged.setdefault((line["step"], "train/loss" in line), {}).update(line)
    return merged
