"""Rows of the tables that compare runs: one run per row, and its accuracy on each test set."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.reporting.text_table import ABSENT, show
from launch.runs.finished import Run
from launch.runs.metrics import natural
from mnm_jax.analysis import has_metric, steps_to_reach

_LEVEL = 0.9


def compare(summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns a run's cells in the table that compares runs, by column.

    The columns are seeds, updates, chance (on the test set, if the task reports it), accuracy (test, mean
    +- sample standard deviation over seeds), worst seed (its test accuracy), updates to 90% (first validation at which
    a seed has an accuracy of 90% or more, mean over the seeds that reach it), seconds (all seeds, with compilation and
    evaluation) and parameters (per seed). In place of the accuracies, a task that is played has reward (per test
    episode) and worst seed, and a language model has bits per character (of the test text).

    Args:
      summary: content of `summary.json`.
      lines: content of `metrics.jsonl`.
    """
    accuracy, chance, reward, bits = (
        summary["metrics"].get(f"test/{name}") for name in ("accuracy", "chance", "reward", "bits")
    )
    scores = {"accuracy": _mean_and_std(accuracy), "worst seed": _worst(accuracy)}
    scores[f"updates to {_LEVEL:.0%}"] = _updates(lines)
    if reward is not None:
        scores = {"reward": _mean_and_std(reward), "worst seed": _worst(reward)}
    if bits is not None:
        scores = {"bits per character": _mean_and_std(bits)}
    return {
        "seeds": str(summary["seeds"]),
        "updates": f"{summary['steps']:,}",
        **({"chance": show(chance["mean"])} if chance else {}),
        **scores,
        "seconds": f"{summary['seconds']:,.0f}",
        "parameters": f"{summary['parameters']:,}",
    }


def comparison_rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Returns the table that compares runs: their names, then the cells of `compare`.

    Raises:
      ValueError: the summary of a run holds values that are not numbers; the message names its folder.
    """
    rows = []
    for names, run in zip(run_names(runs), runs, strict=True):
        try:
            rows.append(names | compare(run.summary, run.lines))
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(f"{run.folder} is damaged ({error}); bring its files back, or move it away.") from error
    return rows


def model_rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Returns one row per model, with its main score in every group (mean +- sample standard deviation over seeds)."""
    rows: dict[str, dict[str, str]] = {}
    for run, cells in zip(runs, comparison_rows(runs), strict=True):
        score = next(cells[name] for name in ("accuracy", "reward", "bits per character") if name in cells)
        rows.setdefault(run.name, {"model": run.name})[run.group or ABSENT] = score
    return list(rows.values())


def group_rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Returns one row per group: number of runs, updates, chance (if the task reports it) and seconds of all runs."""
    rows = []
    for group in dict.fromkeys(run.group for run in runs):
        summaries = [run.summary for run in runs if run.group == group]
        updates = sorted({summary["steps"] for summary in summaries})
        chances = {show(found["mean"]) for s in summaries if (found := s["metrics"].get("test/chance"))}
        rows.append(
            {
                "group": group or ABSENT,
                "runs": str(len(summaries)),
                "updates": " to ".join(f"{steps:,}" for steps in dict.fromkeys((updates[0], updates[-1]))),
                **({"chance": " to ".join(sorted(chances))} if chances else {}),
                "seconds": f"{sum(summary['seconds'] for summary in summaries):,.0f}",
            }
        )
    return rows


def run_names(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Returns the first cells of each run's row: its group, if any run has one, and its name."""
    grouped = any(run.group for run in runs)
    return [{"group": run.group or ABSENT, "model": run.name} if grouped else {"model": run.name} for run in runs]


def by_test_set(summary: Mapping[str, Any]) -> dict[str, str]:
    """Returns the accuracy on each named test set, by the name of the set.

    A chance level is added where the task reports one that differs from that of the trained setting, as in
    `{"support=8": "0.7100 +- 0.0200 (chance 0.1644)"}` from "test/support=8/accuracy" and "test/support=8/chance".
    """
    metrics = summary["metrics"]
    usual = metrics.get("test/chance", {}).get("mean")
    cells = {}
    for name in sorted((name for name in metrics if re.fullmatch("test/.+/accuracy", name)), key=natural):
        chance = metrics.get(f"{name.removesuffix('accuracy')}chance")
        level = f" (chance {show(chance['mean'])})" if chance and chance["mean"] != usual else ""
        cells[name.removeprefix("test/").removesuffix("/accuracy")] = _mean_and_std(metrics[name]) + level
    return cells


def sizes_of_test_sets(summary: Mapping[str, Any]) -> dict[str, dict[int, list[float]]]:
    """Returns the accuracy of every seed on the test sets whose names are KEY=SIZE, by key and size.

    For example `{"support": {8: [0.9, 0.8], 16: [0.5, 0.4]}}` from "test/support=8/accuracy" and
    "test/support=16/accuracy".
    """
    found: dict[str, dict[int, list[float]]] = {}
    for name, row in summary["metrics"].items():
        match = re.fullmatch(r"test/([^/=]+)=(\d+)/accuracy", name)
        if match and None not in row["per_seed"]:
            found.setdefault(match[1], {})[int(match[2])] = row["per_seed"]
    return found


def _mean_and_std(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ABSENT
    spread = f" +- {show(row['std'])}" if len(row["per_seed"]) > 1 and row["mean"] is not None else ""
    return show(row["mean"]) + spread


def _worst(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ABSENT
    return show(None if None in row["per_seed"] else min(row["per_seed"]))


def _updates(lines: Sequence[Mapping[str, Any]]) -> str:
    if not has_metric(lines, "valid/accuracy"):
        return ABSENT
    steps = steps_to_reach(lines, "valid/accuracy", _LEVEL)
    reached = steps[np.isfinite(steps)]
    if not reached.size:
        return ABSENT
    some = "" if reached.size == steps.size else f" ({reached.size} of {steps.size} seeds)"
    return f"{reached.mean():,.0f}{some}"
