"""Handles SIGTERM and SIGINT as requests to stop a run after the update in progress."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupted(Exception):
    """Raised when a signal has stopped a run, after its state was saved."""


class StopRequest:
    """The request to stop a run.

    Attributes:
      name: the signal that arrived, "SIGTERM" or "SIGINT"; None before any signal.
    """

    def __init__(self) -> None:
        self.name: str | None = None


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Yields a `StopRequest` that records the first SIGTERM or SIGINT.

    After it a SIGINT acts as usual, so that a Ctrl-C then ends the program at once. Another SIGTERM changes nothing:
    schedulers and parent processes often send more than one.

    The previous handlers are restored on exit. Python allows signal handlers in the main thread only; in any other
    thread the request stays empty.
    """
    request = StopRequest()
    former: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def record(number: int, frame: object) -> None:
        request.name = request.name or signal.Signals(number).name
        signal.signal(signal.SIGINT, former[signal.SIGINT])

    if threading.current_thread() is threading.main_thread():
        former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in former:
            signal.signal(number, record)
    try:
        yield request
    finally:
        restore()
