"""Writes metrics as JSON lines, the record of a run, and as TensorBoard events for viewing.

Shape letter: `S` seeds.
"""

import contextlib
import json
import math
import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from absl import logging

from mnm_jax._checks import check_sizes
from mnm_jax._extras import extra
from mnm_jax._files import named_errors, whole_file

_FILE = "metrics.jsonl"


class MetricWriter:
    """Appends metrics to `WORKDIR/metrics.jsonl` and `WORKDIR/tensorboard/`.

    Each call writes one line: `{"step": 100, "seconds": 12.5, "train/loss": [0.5, 0.6]}`, with one number per seed and
    null for a number that is not finite. TensorBoard shows the mean over seeds as "train/loss" and, for several seeds,
    also each seed, as "train/loss/seed0".

    Attributes:
      lines: the content of the file, oldest line first.

    Args:
      workdir: folder of the run, created if missing.
      step: number of updates after which the run resumes. Lines of later updates, which an interrupted run may have
        written, and lines that cannot be read are removed.
      saved: the lines of the checkpoint from which the run resumes; lines that are missing from the file are written
        again. None: the lines of the file.

    Raises:
      ImportError: tensorboardX is not installed.
      OSError: a file cannot be written; the message names it.
    """

    def __init__(
        self, workdir: str | os.PathLike, *, step: int = 0, saved: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        check_sizes(least=0, step=step)
        with extra("train"):
            from tensorboardX import crc32c, summary
            from tensorboardX.proto import event_pb2

        workdir = pathlib.Path(workdir)
        self._crc32c, self._scalar, self._event = crc32c.crc32c, summary.scalar, event_pb2.Event
        self._path, board = workdir / _FILE, workdir / "tensorboard"
        with named_errors(board):
            board.mkdir(parents=True, exist_ok=True)
        self.lines = _restore(self._path, step, saved)
        self._board_path = board / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        with contextlib.ExitStack() as stack:
            # Without buffers: data that a full disk has refused would raise again while the files are closed.
            with named_errors(self._path):
                self._file = stack.enter_context(self._path.open("ab", buffering=0))
            with named_errors(self._board_path):
                self._board = stack.enter_context(self._board_path.open("ab", buffering=0))
            self._write_event(0, file_version="brain.Event:2")
            # At this event TensorBoard drops what an earlier start of the run wrote for this step and later ones.
            self._write_event(step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
            self._files = stack.pop_all()

    def write(self, step: int, seconds: float, metrics: Mapping[str, np.ndarray]) -> None:
        """Appends one line.

        Args:
          step: number of updates made.
          seconds: seconds of training so far.
          metrics: `[S]` by name.

        Raises:
          OSError: a file cannot be written; the message names it.
        """
        values = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        line = {"step": step, "seconds": seconds} | {name: list(map(_finite, v)) for name, v in values.items()}
        _append(self._file, self._path, f"{json.dumps(line, allow_nan=False)}\n".encode())
        self.lines.append(line)
        for name, value in values.items():
            tag = name.replace("=", "_")  # TensorBoard allows no "="
            self._write_event(step, summary=self._scalar(tag, value.mean()))
            for seed, number in enumerate(value if len(value) > 1 else ()):
                self._write_event(step, summary=self._scalar(f"{tag}/seed{seed}", number))

    def flush(self) -> None:
        """Flushes all lines to the disk.

        Raises:
          OSError: the disk refuses them; the message names the file.
        """
        with named_errors(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the files."""
        self._files.close()

    def _write_event(self, step: int, **content: Any) -> None:
        """Appends a record of TensorBoard: a length, its checksum, the event, its checksum."""
        event = self._event(wall_time=time.time(), step=step, **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        record = b"".join(part + struct.pack("<I", self._checksum(part)) for part in (length, event))
        _append(self._board, self._board_path, record)

    def _checksum(self, data: bytes) -> int:
        crc = self._crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the lines of `WORKDIR/metrics.jsonl`, oldest first; empty without the file.

    A line that cannot be read, as a crash or a damaged disk may leave it, is left out; a warning names file and line.
    """
    path = pathlib.Path(workdir) / _FILE
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.exists() else [], 1):
        try:
            if line:
                found.append(_parse(line))
        except (ValueError, TypeError) as error:
            logging.warning("%s, line %d cannot be read and is left out (%s).", path, number, error)
    return found


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _parse(line: bytes) -> dict[str, Any]:
    """Returns the content of a line; raises ValueError or TypeError for anything that `MetricWriter` does not write."""
    parsed = json.loads(line)
    if not isinstance(parsed, dict):
        raise ValueError("no JSON object")
    check_sizes(least=0, step=parsed.get("step"))
    for name, value in parsed.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(number, int | float | None) for number in numbers):
            raise ValueError(f"{name} is not a list of numbers")
    return parsed


def _restore(path: pathlib.Path, step: int, saved: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Returns the lines up to update `step`, after making them the content of the file if it differs."""
    on_disk = read_metrics(path.parent)
    kept = [line for line in on_disk if line["step"] <= step]
    if saved is not None:
        lost = sum(line not in kept for line in saved)
        if lost:
            logging.warning("%d lines are missing from %s; they are restored from the checkpoint.", lost, path)
        # The evaluation on the test split comes after the last checkpoint, which therefore does not hold its line.
        tested = [line for line in kept if line not in saved and any(name.startswith("test/") for name in line)]
        kept = [*map(dict, saved), *tested]
    text = "".join(json.dumps(line) + "\n" for line in kept).encode()
    if text != (path.read_bytes() if path.exists() else b""):
        with whole_file(path, "wb") as file:
            file.write(text)
    return kept


def _append(file: BinaryIO, path: pathlib.Path, data: bytes) -> None:
    """Appends all data to a file without a buffer; one `write` may append only a part of them."""
    with named_errors(path):
        while data:
            data = data[file.write(data) :]
