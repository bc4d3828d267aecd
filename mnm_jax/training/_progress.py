"""Shows the progress of a run: a bar on a terminal, otherwise a plain line at most once per minute."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from mnm_jax._checks import check_sizes
from mnm_jax._extras import extra

if TYPE_CHECKING:
    from rich.console import Console

_LINE_SECONDS = 60.0


class ProgressBar:
    """Shows the number of updates made, updates per second, time left, and the latest metrics.

    Time spent in `pause()` (compiling, evaluating, saving) is excluded from the rate and from the time left.

    Args:
      total: number of updates of the run.
      step: number of updates made before this start of the run.
      clock: returns seconds; for tests.
      console: where to draw the bar; None: standard error. A console that is not a terminal gets lines instead.
      quiet: whether to show nothing.

    Raises:
      ImportError: rich is not installed.
    """

    def __init__(
        self,
        total: int,
        step: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        console: "Console | None" = None,
        quiet: bool = False,
    ) -> None:
        check_sizes(least=0, total=total, step=step)
        with extra("train"):
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self.total = total
        self.step = step
        self._first_step = step
        self._clock = clock
        self._start = self._last_line = clock()
        self._printed = step
        self._paused = 0.0
        self._pause_start: float | None = None
        self._metrics: dict[str, float] = {}
        self._quiet = quiet
        self._bar: Progress | None = None
        self._console = console or Console(stderr=True)
        if self._console.is_terminal and not quiet:
            count, status = TextColumn("{task.completed:.0f}/{task.total:.0f}"), TextColumn("{task.fields[status]}")
            self._bar = Progress(count, BarColumn(bar_width=10), TaskProgressColumn(), status, console=self._console)
            self._task = self._bar.add_task("", total=total, completed=step, status="")
            self._bar.start()

    @property
    def rate(self) -> float | None:
        """Updates per second outside of pauses; None before the first update that counts."""
        now = self._clock() if self._pause_start is None else self._pause_start
        seconds = now - self._start - self._paused
        done = self.step - self._first_step
        return done / seconds if done and seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Expected seconds until the last update; None before the first update that counts."""
        rate = self.rate
        return None if rate is None else (self.total - self.step) / rate

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes the time spent inside from the rate; must not be nested."""
        self._pause_start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - self._pause_start
            self._pause_start = None

    def update(self, step: int, metrics: Mapping[str, float] | None = None, *, counted: bool = True) -> None:
        """Shows that `step` updates have been made.

        Args:
          step: number of updates made.
          metrics: latest metrics by name.
          counted: False for updates that ran inside of `pause()`.
        """
        if not counted:
            self._first_step += step - self.step
        self.step = step
        self._metrics |= metrics or {}
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=self.status())
        elif self._clock() - self._last_line >= _LINE_SECONDS:
            self._print_line()

    def status(self) -> str:
        """Returns rate, time left and metrics, as in `12.5 updates/s, 0:01:40 left, train/loss 0.25`."""
        parts = []
        rate, left = self.rate, self.seconds_left
        if rate is not None and left is not None:
            minutes, seconds = divmod(round(left), 60)
            parts += [f"{rate:.3g} updates/s", f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"]
        return ", ".join(parts + [f"{name} {value:.3g}" for name, value in self._metrics.items()])

    def close(self) -> None:
        """Restores the terminal, or prints the last line."""
        if self._bar is not None:
            self._bar.stop()
        elif self.step != self._printed:
            self._print_line()

    def _print_line(self) -> None:
        if not self._quiet:
            line = f"update {self.step}/{self.total} {self.status()}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._last_line, self._printed = self._clock(), self.step
