"""Tests signals inside `stop_request`."""

import os
import signal

import pytest

from mnm_jax.training._signals import stop_request


@pytest.fixture(autouse=True)
def default_handlers():
    """Sets the handlers of a program in the foreground: a shell starts its background jobs with SIGINT ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_is_recorded_a_sigterm_changes_nothing_more_and_a_ctrl_c_acts(name):
    with pytest.raises(KeyboardInterrupt), stop_request() as stop:
        os.kill(os.getpid(), signal.Signals[name])
        assert stop.name == name
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == name
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ZeroDivisionError), stop_request() as stop:
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
        raise ZeroDivisionError
    assert stop.name is None
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
