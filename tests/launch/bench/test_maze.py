"""Tests the maze's benchmark from end to end, and its rates."""

from functools import partial

import jax
import pytest

from launch.bench.maze import maze
from launch.bench.measure import Candidate, Program, measure


def test_a_small_suite_from_end_to_end():
    (group,) = maze(jax.devices()[:2], agents=("rnn",), batch=4, steps=3)
    rows = group.finish(measure(group.candidates, memory_bytes=None, pause=lambda: None))
    assert [row["driver"] for row in rows] == ["play", "train"]
    for row in rows:
        assert row["kilosteps_per_second"] == pytest.approx(12 / row["milliseconds"])


def test_rates_of_what_was_not_measured_are_not_known():
    (group,) = maze(jax.devices()[:1], agents=("rnn",))
    candidates = [Candidate({"driver": name}, partial(Program, int)) for name in ("play", "train")]
    rows = measure(candidates, memory_bytes=None, pause=lambda: None)
    rows = [row | {"batch": 30, "steps": 200, "milliseconds": ms} for row, ms in zip(rows, (None, 2.0), strict=True)]
    play, train = group.finish(rows)
    assert play["kilosteps_per_second"] is None
    assert train["kilosteps_per_second"] == 3000
