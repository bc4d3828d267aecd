"""Tests progress reports with a fake clock."""

import io

import pytest
from rich.console import Console

from mnm_jax.training import MetricWriter, ProgressBar, save_checkpoint, save_params


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def log_only():
    return Console(file=io.StringIO(), force_terminal=False)


def test_compiling_and_evaluating_are_left_out_of_the_rate():
    clock = Clock()
    bar = ProgressBar(100, clock=clock, console=log_only())
    assert bar.rate is None and bar.seconds_left is None
    with bar.pause():
        clock.now += 50  # compiles, and makes the first update
    bar.update(1, counted=False)
    assert bar.rate is None
    clock.now += 10
    bar.update(21)
    assert bar.rate == 2.0  # 20 updates in 10 seconds
    with bar.pause():
        clock.now += 1000
        assert bar.rate == 2.0  # a pause that has not ended is excluded as well
    assert (bar.rate, bar.seconds_left) == (2.0, 39.5)


def test_steps_of_an_earlier_start_do_not_count():
    clock = Clock()
    bar = ProgressBar(100, 60, clock=clock, console=log_only())
    clock.now += 5
    bar.update(70)
    assert (bar.rate, bar.seconds_left) == (2.0, 15.0)


def test_time_in_a_pause_that_fails_is_left_out_too():
    clock = Clock()
    bar = ProgressBar(10, clock=clock, console=log_only())
    with pytest.raises(KeyError), bar.pause():
        clock.now += 7
        raise KeyError
    clock.now += 1
    bar.update(4)
    assert bar.rate == 4.0


def test_the_bar_shows_rate_time_left_and_metrics_and_reaches_100_percent():
    clock, console = Clock(), terminal()
    bar = ProgressBar(8000, clock=clock, console=console)
    clock.now += 1
    bar.update(1, {"train/loss": 0.123456})
    assert bar.status() == "1 updates/s, 2:13:19 left, train/loss 0.123"
    bar.update(2, {"valid/accuracy": 0.5})
    assert bar.status().endswith("train/loss 0.123, valid/accuracy 0.5")
    bar.update(8000)
    bar.close()
    drawn = console.file.getvalue()
    assert "100%" in drawn and "8000/8000" in drawn and "valid/accuracy 0.5" in drawn


def test_without_a_terminal_there_is_a_line_a_minute_and_one_at_the_end():
    clock, console = Clock(), log_only()
    bar = ProgressBar(300, clock=clock, console=console)
    for step in range(1, 301):
        clock.now += 0.5
        bar.update(step, {"loss": 0.25})
    bar.close()
    lines = console.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["120/300", "240/300", "300/300"]
    assert lines[0] == "update 120/300 2 updates/s, 0:01:30 left, loss 0.25"


@pytest.mark.parametrize("step, error", [(-1, ValueError), (0.5, TypeError)])
def test_a_wrong_number_of_updates_is_named(tmp_path, step, error):
    """In the bar, the metrics, the files of parameters and the checkpoints."""
    for make in (
        lambda: ProgressBar(10, step),
        lambda: MetricWriter(tmp_path, step=step),
        lambda: save_params(tmp_path, {}, step),
        lambda: save_checkpoint(tmp_path, step, None, {}),
    ):
        with pytest.raises(error, match=f"step must be .*>= 0, got {step}"):
            make()
