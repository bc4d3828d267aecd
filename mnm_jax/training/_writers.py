"""Writes metrics as JSON lines, the record of a run, and as TensorBoard events for viewing.

Shape letter: `S` seeds.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mnm_jax._checks import check_sizes
from mnm_jax._extras import extra

_FILE = "metrics.jsonl"


class MetricWriter:
    """Appends metrics to `WORKDIR/metrics.jsonl` and `WORKDIR/tensorboard/`.

    Each call writes one line: `{"step": 100, "seconds": 12.5, "train/loss": [0.5, 0.6]}`, with one number per seed and
    null for a number that is not finite. TensorBoard shows the mean over seeds as "train/loss" and, for several seeds,
    also each seed, as "train/loss/seed0".

    Args:
      workdir: folder of the run, created if missing.
      step: number of updates after which the run resumes. Lines of later updates, which an interrupted run may have
        written, are removed.

    Raises:
      ImportError: tensorboardX is not installed.
    """

    def __init__(self, workdir: str | os.PathLike, *, step: int = 0) -> None:
        check_sizes(least=0, step=step)
        with extra("train"):
            from tensorboardX import SummaryWriter

        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / _FILE
        _remove_after(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, seconds: float, metrics: Mapping[str, np.ndarray]) -> None:
        """Appends one line.

        Args:
          step: number of updates made.
          seconds: seconds of training so far.
          metrics: `[S]` by name.
        """
        values = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        line = {"step": step, "seconds": seconds} | {name: list(map(_finite, v)) for name, v in values.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            tag = name.replace("=", "_")  # TensorBoard allows no "="
            self._board.add_scalar(tag, value.mean(), step)
            for seed, number in enumerate(value if len(value) > 1 else ()):
                self._board.add_scalar(f"{tag}/seed{seed}", number, step)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._file.close()
        self._board.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the lines of `WORKDIR/metrics.jsonl`, oldest first, without a line that a crash truncated."""
    path = pathlib.Path(workdir) / _FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in map(_parse, lines) if line is not None]


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _parse(line: str) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) and "step" in parsed else None


def _remove_after(path: pathlib.Path, step: int) -> None:
    """Removes lines of later updates and truncated lines; replaces the file only when the new one is complete."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if (parsed := _parse(line)) is not None and parsed["step"] <= step]
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
