"""The table of metrics that a run ends with."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def summarise(metrics: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """`{name: {mean, std, per_seed}}` of metrics `[S]`: the sample standard deviation (ddof=1), 0.0 of one seed.

    What is not finite becomes None.
    """
    summary = {}
    for name, values in sorted(metrics.items()):
        std = values.std(ddof=1) if len(values) > 1 else 0.0
        per_seed = [_finite(value) for value in values]
        summary[name] = {"mean": _finite(values.mean()), "std": _finite(std), "per_seed": per_seed}
    return summary


def format_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a metric: its name, then mean +- standard deviation over the seeds."""
    width = max(map(len, ["metric", *summary]))
    seeds = max((len(row["per_seed"]) for row in summary.values()), default=0)
    rows = [f"{name:<{width}}  {_show(row['mean'])} +- {_show(row['std'])}" for name, row in summary.items()]
    return "\n".join([f"{'metric':<{width}}  mean +- std of {seeds} seed{'s' * (seeds != 1)}", *rows])


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _show(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
