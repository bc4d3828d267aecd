"""Tables: the metrics that a run ends with, and the comparison of several runs, as text and as Markdown."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.runs.metrics import natural
from mnm_jax.analysis import has_metric, steps_to_reach

_LEVEL = 0.9
_ABSENT = "-"


def format_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a metric: its name, then mean +- standard deviation over the seeds."""
    width = max(map(len, ["metric", *summary]))
    seeds = max((len(row["per_seed"]) for row in summary.values()), default=0)
    rows = [f"{name:<{width}}  {_show(row['mean'])} +- {_show(row['std'])}" for name, row in summary.items()]
    return "\n".join([f"{'metric':<{width}}  mean +- std of {seeds} seed{'s' * (seeds != 1)}", *rows])


def compare(summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The cells of a run in the table that compares runs, by column.

    seeds, steps (updates made), chance (of the test set, where the task tells it), accuracy (test, mean +- sample
    standard deviation over seeds), worst seed (its test accuracy), updates to 90% (first validation at which a seed has
    90% accuracy or more, mean over the seeds that get there), seconds (all seeds, with compiling and evaluating),
    parameters (of one seed). Of a task that is played: reward (of a test episode) and worst seed for the accuracies; of
    a language model: bits (per character of the test text).

    Args:
        summary: of `summary.json`. lines: of `metrics.jsonl`.
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
        "steps": f"{summary['steps']:,}",
        **({"chance": _show(chance["mean"])} if chance else {}),
        **scores,
        "seconds": f"{summary['seconds']:,.0f}",
        "parameters": f"{summary['parameters']:,}",
    }


def by_test_set(summary: Mapping[str, Any]) -> dict[str, str]:
    """Accuracy on each named test set, and its chance level where it is told and not that of the trained setting.

    `{"support=8": "0.7100 +- 0.0200 (chance 0.1644)"}` from "test/support=8/accuracy" and "test/support=8/chance".
    """
    metrics = summary["metrics"]
    usual = metrics.get("test/chance", {}).get("mean")
    cells = {}
    for name in sorted((name for name in metrics if re.fullmatch("test/.+/accuracy", name)), key=natural):
        chance = metrics.get(f"{name.removesuffix('accuracy')}chance")
        level = f" (chance {_show(chance['mean'])})" if chance and chance["mean"] != usual else ""
        cells[name.removeprefix("test/").removesuffix("/accuracy")] = _mean_and_std(metrics[name]) + level
    return cells


def sizes_of_test_sets(summary: Mapping[str, Any]) -> dict[str, dict[int, list[float]]]:
    """Accuracy of every seed on the test sets that are named by a size, by name and size.

    `{"support": {8: [0.9, 0.8], 16: [0.5, 0.4]}}` from "test/support=8/accuracy" and "test/support=16/accuracy".
    """
    found: dict[str, dict[int, list[float]]] = {}
    for name, row in summary["metrics"].items():
        match = re.fullmatch(r"test/([^/=]+)=(\d+)/accuracy", name)
        if match and None not in row["per_seed"]:
            found.setdefault(match[1], {})[int(match[2])] = row["per_seed"]
    return found


def format_columns(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as aligned text, one line each under a line of column names; what a row lacks is "-"."""
    lines = _lines(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def format_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as a table of Markdown."""
    lines = [[cell.replace("+-", "±").replace("|", r"\|") for cell in line] for line in _lines(rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _lines(rows: Sequence[Mapping[str, str]]) -> list[list[str]]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [columns, *([row.get(column, _ABSENT) for column in columns] for row in rows)]


def _mean_and_std(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return _ABSENT
    spread = f" +- {_show(row['std'])}" if len(row["per_seed"]) > 1 and row["mean"] is not None else ""
    return _show(row["mean"]) + spread


def _worst(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return _ABSENT
    return _show(None if None in row["per_seed"] else min(row["per_seed"]))


def _updates(lines: Sequence[Mapping[str, Any]]) -> str:
    if not has_metric(lines, "valid/accuracy"):
        return _ABSENT
    steps = steps_to_reach(lines, "valid/accuracy", _LEVEL)
    reached = steps[np.isfinite(steps)]
    if not reached.size:
        return _ABSENT
    some = "" if reached.size == steps.size else f" ({reached.size} of {steps.size} seeds)"
    return f"{reached.mean():,.0f}{some}"


def _show(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
