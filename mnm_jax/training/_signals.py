"""SIGTERM and SIGINT ask a run to stop at the next good moment."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(Exception):
    """A run was asked to stop, and saved its state first."""


class StopRequest:
    """name: the signal that arrived ("SIGTERM", "SIGINT"), or None."""

    def __init__(self):
        self.name: str | None = None


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Inside, the first SIGTERM or SIGINT is noted; a second one acts as usual. Handlers are restored on the way out.

    Python allows handlers in the main thread only; in any other thread nothing is ever noted.
    """
    request = StopRequest()
    before = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        request.name = signal.Signals(number).name
        restore()

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        restore()
