"""The table of a task that consists of many tasks: the error of each in %, their mean, and how many failed.

Shape letter: `S` seeds.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.reporting.text_table import format_columns, format_table
from launch.runs.metrics import natural

FAILED_ABOVE = 5.0  # % error; the limit that bAbI papers use


def errors_by_task(summary: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Returns the test error in % by task, `[S]` each; a value that is not finite is NaN.

    Args:
      summary: metrics as `summarise` returns them. "test/task=1/error", "test/task=2/error", ... become
        `{"1": [0.0, 0.1], "2": ...}`; any other task gives an empty dict.
    """
    errors = {}
    for name in sorted(summary, key=natural):
        if found := re.fullmatch(r"test/task=(\w+)/error", name):
            errors[found[1]] = 100 * np.array(summary[name]["per_seed"], np.float64)
    return errors


def end_table(summary: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """Returns the table that a run prints at its end: errors by task if there are several, else a line per metric."""
    errors = errors_by_task(summary)
    if not errors:
        return format_table(summary)
    return f"test error in %\n{format_columns(seed_rows(errors, seeds))}"


def seed_rows(errors: Mapping[str, np.ndarray], seeds: Sequence[int]) -> list[dict[str, str]]:
    """Returns one row per task and two totals, with a column per seed, and mean, deviation and best over the seeds.

    "mean" is the mean over tasks, which all weigh the same. "failed" is the number of tasks with more than 5% error.
    """
    return [_seed_row(name, values, seeds) for name, values in _with_totals(errors).items()]


def run_rows(runs: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict[str, str]]:
    """Returns one row per task and three totals, with a column per run: mean over its seeds, and their deviation."""
    names = list(dict.fromkeys(name for errors in runs.values() for name in errors))
    rows = {name: {"task": name} for name in [*names, "mean", "best seed", "failed"]}
    for run, errors in runs.items():
        totals = _with_totals(errors)
        for name, values in totals.items():
            rows[name][run] = _mean_and_std(values)
        rows["best seed"][run] = f"{totals['mean'].min():.2f}"
    return list(rows.values())


def _with_totals(errors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    every = np.stack(list(errors.values()))
    return {**errors, "mean": every.mean(0), "failed": np.sum(every > FAILED_ABOVE, 0).astype(float)}


def _seed_row(name: str, values: np.ndarray, seeds: Sequence[int]) -> dict[str, str]:
    row = {"task": name} | {f"seed {seed}": f"{value:.2f}" for seed, value in zip(seeds, values, strict=True)}
    if len(values) > 1:
        row |= {"mean": f"{np.mean(values):.2f}", "std": f"{np.std(values, ddof=1):.2f}", "best": f"{min(values):.2f}"}
    return row


def _mean_and_std(values: np.ndarray) -> str:
    spread = f" +- {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}"
