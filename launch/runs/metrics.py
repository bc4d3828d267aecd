"""Metrics of a run as they are written to `summary.json`, and the order of their names. Shape letter: `S` seeds."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np


def summarise(metrics: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Returns `{name: {mean, std, per_seed}}` of metrics `[S]`, sorted by name.

    `std` is the sample standard deviation (ddof=1), 0.0 for one seed. A value that is not finite becomes None.
    """
    summary = {}
    for name, values in sorted(metrics.items()):
        std = values.std(ddof=1) if len(values) > 1 else 0.0
        per_seed = [_finite(value) for value in values]
        summary[name] = {"mean": _finite(values.mean()), "std": _finite(std), "per_seed": per_seed}
    return summary


def natural(text: str) -> list[Any]:
    """Returns a sorting key that puts "support=8" before "support=16".

    Examples:
      >>> sorted(["n=16", "n=8", "m"], key=natural)
      ['m', 'n=8', 'n=16']
    """
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", text))]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
