"""How far a run is: a bar on a terminal, a line in the log now and then elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

from absl import logging
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

_LINE_SECONDS = 60.0


class ProgressBar:
    """Steps done, steps a second, time left, and the latest metrics.

    The time spent in `pause()` (compiling, evaluating, saving) is left out of the rate, and so of the time left.

    Args:
        total: steps of the run.
        step: steps done before this start of it.
        clock: seconds, for tests.
        console: where the bar is drawn; standard error if None. If it is no terminal, a line goes to the log instead,
            at most one a minute.
        quiet: neither bar nor lines.
    """

    def __init__(
        self,
        total: int,
        step: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        console: Console | None = None,
        quiet: bool = False,
    ):
        self.total = total
        self.step = step
        self._first_step = step
        self._clock = clock
        self._start = self._last_line = clock()
        self._paused = 0.0
        self._pause_start: float | None = None
        self._metrics: dict[str, float] = {}
        console = console or Console(stderr=True)
        self._bar, self._quiet = None, quiet
        if console.is_terminal and not quiet:
            steps = TextColumn("{task.completed:.0f}/{task.total:.0f}")
            columns = steps, BarColumn(bar_width=10), TaskProgressColumn()
            self._bar = Progress(*columns, TextColumn("{task.fields[status]}"), console=console)
            self._task = self._bar.add_task("", total=total, completed=step, status="")
            self._bar.start()

    @property
    def rate(self) -> float | None:
        """Steps a second outside of pauses; None before the first one that counts."""
        now = self._clock() if self._pause_start is None else self._pause_start
        seconds = now - self._start - self._paused
        done = self.step - self._first_step
        return done / seconds if done and seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        rate = self.rate
        return None if rate is None else (self.total - self.step) / rate

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside does not count; not to be nested."""
        self._pause_start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - self._pause_start
            self._pause_start = None

    def update(self, step: int, metrics: Mapping[str, float] | None = None, *, counted: bool = True) -> None:
        """Reports that `step` steps are done. counted: False for steps that ran inside of `pause()`."""
        if not counted:
            self._first_step += step - self.step
        self.step = step
        self._metrics |= metrics or {}
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=self.status())
        elif not self._quiet and (self._clock() - self._last_line >= _LINE_SECONDS or step == self.total):
            self._last_line = self._clock()
            logging.info("step %d/%d %s", step, self.total, self.status())

    def status(self) -> str:
        """`12.5 steps/s, 0:01:40 left, train/loss 0.25`"""
        parts = []
        if self.rate is not None:
            minutes, seconds = divmod(round(self.seconds_left), 60)
            parts += [f"{self.rate:.3g} steps/s", f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"]
        return ", ".join(parts + [f"{name} {value:.3g}" for name, value in self._metrics.items()])

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
