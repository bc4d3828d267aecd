"""Finished runs, read from their folders."""

import copy
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from launch.runs.metrics import natural, summarise
from launch.runs.workdir import CONFIG, SUMMARY
from mnm_jax.training import read_metrics

_KEYS = {"task", "model", "seeds", "steps", "seconds", "command", "parameters", "metrics"}  # needed of a summary


class Run(NamedTuple):
    """A finished run. group: its parent folder, relative to the folder of runs ("" directly in it); label: its name.

    summary: of `summary.json`; lines: of `metrics.jsonl`.
    """

    folder: pathlib.Path
    group: str
    label: str
    summary: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The label, and the model where the label does not tell it."""
        model = self.summary["model"]
        return self.label if model in self.label else f"{self.label} ({model})"

    @property
    def place(self) -> str:
        return f"{self.group}/{self.label}" if self.group else self.label


def read_run(folder: pathlib.Path, root: pathlib.Path) -> Run:
    """The finished run in `folder`, somewhere in the folder of runs `root`.

    Raises:
        FileNotFoundError: no run, or one that is not finished. ValueError: its `summary.json` is damaged.
    """
    path = folder / SUMMARY
    if not path.is_file():
        state = "is not finished" if (folder / CONFIG).is_file() else "holds no run"
        raise FileNotFoundError(f"{folder} {state}: it has no {SUMMARY}; run the command of launch.train to its end.")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        lacking = sorted(_KEYS - summary.keys())
    except (ValueError, AttributeError) as error:  # JSON of something else has no keys
        raise ValueError(f"{path} is damaged (no JSON object); run its command again to write it anew.") from error
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(lacking)}; run its command again to write it anew.")
    group = folder.parent.relative_to(root).as_posix() if folder != root else "."
    return Run(folder, "" if group == "." else group, folder.resolve().name, summary, read_metrics(folder))


def find_runs(root: pathlib.Path) -> tuple[list[Run], list[str]]:
    """The finished runs below `root` in natural order, and a line on each folder of a run that is not or is damaged."""
    runs, notes = [], []
    for folder, below, files in os.walk(root):
        if {CONFIG, SUMMARY} & set(files):
            below.clear()
            try:
                runs.append(read_run(pathlib.Path(folder), root))
            except (ValueError, OSError) as error:
                notes.append(str(error))
    return sorted(runs, key=lambda run: natural(run.place)), sorted(notes)


def join_seeds(runs: Sequence[Run], root: pathlib.Path) -> list[Run]:
    """The runs, with those of one folder that differ in their seed alone put together as one run of all their seeds.

    The joined run stands for the folder: `GROUP/LABEL/SEED/` is `LABEL` in `GROUP`. Its seconds are those of all
    together; of `metrics.jsonl` it has the lines that every one has. Runs whose summary lacks the config stay alone.
    """
    families: dict[tuple[pathlib.Path, str], list[Run]] = {}
    for run in runs:
        # A run in the folder of runs itself has no folder to stand for.
        alone = run.folder.parent == root or run.folder == root or "config" not in run.summary
        family = str(run.folder) if alone else json.dumps(_without_seed(run.summary["config"]), sort_keys=True)
        families.setdefault((run.folder.parent, family), []).append(run)
    return [family[0] if len(family) == 1 else _join(family, root) for family in families.values()]


def _without_seed(config: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(config)
    config["training"].pop("seed", None)
    return config


def _join(runs: Sequence[Run], root: pathlib.Path) -> Run:
    folder = runs[0].folder.parent
    group = folder.parent.relative_to(root).as_posix()
    names = set.intersection(*(set(run.summary["metrics"]) for run in runs))
    per_seed = {
        name: np.array([value for run in runs for value in run.summary["metrics"][name]["per_seed"]], np.float64)
        for name in names
    }
    summary = {
        **runs[0].summary,
        "seeds": sum(run.summary["seeds"] for run in runs),
        "seconds": sum(run.summary["seconds"] for run in runs),
        "metrics": summarise(per_seed),
    }
    return Run(folder, "" if group == "." else group, folder.name, summary, _join_lines([run.lines for run in runs]))


def _join_lines(runs: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The lines of steps that all runs have, with what all of them measured there, seeds side by side."""
    by_step = [{(line["step"], "train/loss" in line): line for line in lines} for lines in runs]
    joined = []
    for key, first in by_step[0].items():
        lines = [found[key] for found in by_step if key in found]
        if len(lines) == len(runs):
            values = {name: [line[name] for line in lines] for name in first if all(name in line for line in lines)}
            of_seeds = {name: sum(value, []) for name, value in values.items() if isinstance(value[0], list)}
            joined.append({"step": first["step"], "seconds": sum(values["seconds"])} | of_seeds)
    return joined
