"""One trial: a run of `launch.train` whose evaluations are reported to Ray Tune."""

import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from ray import tune

from launch.runs.workdir import SUMMARY, claim
from launch.sweep.space import DEFAULT
from mnm_jax._files import LOCK, lock_folder
from mnm_jax.analysis import has_metric, learning_curve
from mnm_jax.training import read_metrics

LOG = "log.txt"
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 120  # for a process to save its run after a SIGTERM
_PR_SET_PDEATHSIG = 1


class Score(NamedTuple):
    """The score of a trial after an evaluation.

    Attributes:
      step: updates made.
      area: mean of the metric over the evaluations up to `step`.
      last: the metric at `step`.
    """

    step: int
    area: float
    last: float


class Job(Protocol):
    """A run that has been started."""

    def exit_code(self) -> int | None:
        """Returns the exit code, None while it runs."""

    def stop(self) -> None:
        """Ends the run, after it has saved its state if that is possible."""


def scores(workdir: pathlib.Path, metric: str) -> list[Score]:
    """Returns the score after each evaluation of a run; empty before the first.

    Raises:
      ValueError: if it was evaluated, but has no such metric.
    """
    lines = read_metrics(workdir)
    if not has_metric(lines, metric):
        if any(name.startswith("valid/") for line in lines for name in line):
            learning_curve(lines, metric)  # raises, and names the metrics there are
        return []
    curve = learning_curve(lines, metric)
    areas = np.cumsum(curve.mean) / np.arange(1, len(curve.mean) + 1)
    rows = zip(curve.steps.tolist(), areas.tolist(), curve.mean.tolist(), strict=True)
    return [Score(*row) for row in rows]


class Finished:
    """A run that had ended before the trial began."""

    def exit_code(self) -> int | None:
        return 0

    def stop(self) -> None:
        pass


class Process:
    """`launch.train` in its own process, which gets a SIGTERM when the process that started it ends or is killed."""

    def __init__(self, command: Sequence[str], log: pathlib.Path, cwd: str, cpus: int):
        # Without a limit each of the concurrent trials would start a thread for every core.
        environment = {"PJRT_NPROC": str(cpus)} | os.environ | {"PYTHONUNBUFFERED": "1"}
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None

        def end_with_parent() -> None:
            if libc is not None:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        with log.open("a") as file:
            self._process = subprocess.Popen(
                [sys.executable, *command[1:]],
                cwd=cwd,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=libc is not None,  # Ray kills the process group of a worker
                preexec_fn=end_with_parent,
            )

    def exit_code(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()


class Where(NamedTuple):
    """Settings that all trials of a sweep share.

    Attributes:
      folder: folder with one folder per trial.
      cwd: working directory of the trials.
      metric: metric of the evaluations, such as "valid/accuracy".
      cpus: cores per trial.
      start: `(command, config, workdir) -> Job`; None: a `Process`.
      flags: words that end the command of every trial; they change no result, and may differ at the next start.
    """

    folder: str
    cwd: str
    metric: str
    cpus: int
    start: Callable[[Sequence[str], Mapping[str, Any], pathlib.Path], Job] | None = None
    flags: Sequence[str] = ()


class Trial(tune.Trainable):
    """Reports `progress` (percent of its updates), `area` and `last` once per evaluation; fails if the run fails.

    The unchanged recipe, with which all trials are compared, reports at its end only, so that it is never stopped.
    """

    def setup(self, config: dict[Any, Any], *, where: Where) -> None:
        trial = config["trial"]
        self._where, self._reported = where, 0
        self._steps, self._whole = trial["config"]["training"]["steps"], trial["name"] == DEFAULT
        self._workdir = pathlib.Path(where.folder) / trial["name"]
        with lock_folder(self._workdir, wait=_GRACE_SECONDS):  # an earlier start may still save
            # A sweep of more updates needs runs of its own: it could not stop early what has already trained.
            claim(self._workdir, trial["config"], more_updates=False)
        if (self._workdir / SUMMARY).is_file():  # Tune was interrupted before it recorded the end
            self._job: Job = Finished()
            return
        command = [*trial["command"], *where.flags]
        if where.start is None:
            self._job = Process(command, self._workdir / LOG, where.cwd, where.cpus)
        else:
            self._job = where.start(command, trial["config"], self._workdir)

    def step(self) -> dict[str, Any]:
        while True:
            code = self._job.exit_code()  # read before the metrics: after an exit no more are written
            found = scores(self._workdir, self._where.metric)
            if code is None:
                # Tune ends a trial that reports all its updates: report the last evaluation after the run has ended.
                scores_due = [] if self._whole else [score for score in found if score.step < self._steps]
            else:
                scores_due = found
            if code:
                raise RuntimeError(f"{_last_line(self._workdir / LOG)} (exit code {code}, see {self._workdir / LOG})")
            if code == 0 and not found:
                raise RuntimeError(f"it was not evaluated once, see {self._workdir / LOG}.")
            if len(scores_due) > self._reported:
                self._reported = len(scores_due) if self._whole else self._reported + 1
                score = scores_due[self._reported - 1]
                done = code == 0 and self._reported == len(scores_due)
                return {**score._asdict(), "progress": 100.0 * score.step / self._steps, "done": done}
            time.sleep(_POLL_SECONDS)

    def cleanup(self) -> None:
        self._job.stop()


def wait_for_end(folder: pathlib.Path) -> None:
    """Waits until the runs of all trials in a folder have saved their state and ended, at most two minutes."""
    deadline = time.monotonic() + _GRACE_SECONDS
    for path in sorted(folder.glob(f"*/{LOCK}")):
        with contextlib.suppress(BlockingIOError), lock_folder(path.parent, wait=deadline - time.monotonic()):
            pass


def _last_line(log: pathlib.Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
