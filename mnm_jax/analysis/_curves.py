"""Learning curves with error bars, from the lines of a run's `metrics.jsonl`.

Shape letters: `N` lines that hold the metric, `S` seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Lines = Sequence[Mapping[str, Any]]


class LearningCurve(NamedTuple):
    """A metric over training, `[N]` each.

    Mean and spread are NaN where the metric of a seed was not finite. The spread of a single seed is 0.

    Attributes:
      steps: number of updates made.
      mean: mean over seeds.
      std: sample standard deviation (ddof=1) over seeds.
      standard_error: `std / sqrt(S)`.
    """

    steps: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    standard_error: np.ndarray


def has_metric(lines: Lines, metric: str) -> bool:
    """Returns True if any line holds the metric."""
    return any(isinstance(line.get(metric), list) for line in lines)


def learning_curve(lines: Lines, metric: str) -> LearningCurve:
    """Returns mean and spread over seeds of a metric at each update for which it was recorded.

    Args:
      lines: from `mnm_jax.training.read_metrics`; of two lines for the same update the later one is used.
      metric: the metric's name, such as "valid/accuracy".

    Raises:
      ValueError: if no line holds the metric, or lines differ in their number of seeds.

    Examples:
      >>> lines = [{"step": 10, "seconds": 1.5, "valid/accuracy": [0.25, 0.75]}, {"step": 20, "train/loss": [1.0, 1.0]}]
      >>> curve = learning_curve(lines, "valid/accuracy")
      >>> curve.steps.tolist(), curve.mean.tolist(), curve.standard_error.tolist()
      ([10], [0.5], [0.25])
    """
    steps, values = _per_seed(lines, metric)
    seeds = values.shape[1]
    std = np.std(values, axis=1, ddof=1) if seeds > 1 else np.where(np.isfinite(values[:, 0]), 0.0, np.nan)
    return LearningCurve(steps=steps, mean=np.mean(values, axis=1), std=std, standard_error=std / np.sqrt(seeds))


def steps_to_reach(lines: Lines, metric: str, level: float) -> np.ndarray:
    """Returns the number of updates after which each seed's metric first was at least `level`.

    The resolution is that of the recorded lines: the level was reached after the previous line.

    Args:
      lines: from `mnm_jax.training.read_metrics`.
      metric: the metric's name.
      level: the level to reach.

    Returns:
      `[S]` float64; NaN for a seed that did not reach the level.

    Raises:
      ValueError: if no line holds the metric, or lines differ in their number of seeds.

    Examples:
      >>> lines = [{"step": 10, "accuracy": [0.5, 0.1]}, {"step": 20, "accuracy": [0.95, 0.2]}]
      >>> steps_to_reach(lines, "accuracy", 0.9)
      array([20., nan])
    """
    steps, values = _per_seed(lines, metric)
    reached = values >= level
    return np.where(np.any(reached, axis=0), steps[np.argmax(reached, axis=0)], np.nan)


def _per_seed(lines: Lines, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns updates `[N]`, ascending, and values `[N, S]` with NaN for null."""
    found = {line["step"]: line[metric] for line in lines if isinstance(line.get(metric), list)}
    if not found:
        known = sorted({name for line in lines for name, value in line.items() if isinstance(value, list)})
        raise ValueError(f"no line holds the metric {metric!r}; there are: {', '.join(known) or 'none'}.")
    sizes = {len(values) for values in found.values()}
    if len(sizes) > 1:
        raise ValueError(f"lines of {metric!r} differ in their number of seeds: {sorted(sizes)}.")
    steps = sorted(found)
    return np.asarray(steps), np.asarray([found[step] for step in steps], np.float64)
