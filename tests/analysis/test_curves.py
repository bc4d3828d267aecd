"""Tests learning curves against values worked by hand."""

import doctest

import numpy as np
import pytest

from mnm_jax.analysis import _curves as curves
from mnm_jax.analysis import has_metric, learning_curve, steps_to_reach

LINES = [
    {"step": 10, "seconds": 1.0, "train/loss": [3.0, 1.0, 2.0]},
    {"step": 10, "seconds": 1.5, "valid/accuracy": [0.0, 0.3, 0.6]},
    {"step": 30, "seconds": 3.0, "valid/accuracy": [0.95, None, 0.5]},
    {"step": 20, "seconds": 2.0, "valid/accuracy": [0.5, 0.9, 0.7]},
    {"step": 20, "seconds": 2.5, "valid/accuracy": [0.5, 0.9, 0.4]},
]


def test_mean_and_spread_over_seeds():
    curve = learning_curve(LINES, "valid/accuracy")
    np.testing.assert_array_equal(curve.steps, [10, 20, 30])
    # 0, .3, .6: deviations -.3, 0, .3, so std = sqrt(.18 / 2); .5, .9, .4: deviations -.1, .3, -.2.
    np.testing.assert_allclose(curve.mean, [0.3, 0.6, np.nan], rtol=1e-12)
    np.testing.assert_allclose(curve.std, [0.3, np.sqrt(0.14 / 2), np.nan], rtol=1e-12)
    np.testing.assert_allclose(curve.standard_error, curve.std / np.sqrt(3), rtol=1e-12)


def test_one_seed_has_no_spread():
    curve = learning_curve([{"step": 1, "x": [2.0]}, {"step": 2, "x": [None]}], "x")
    np.testing.assert_array_equal(curve.mean, [2.0, np.nan])
    np.testing.assert_array_equal(curve.std, [0.0, np.nan])
    np.testing.assert_array_equal(curve.standard_error, [0.0, np.nan])


def test_first_step_at_a_level():
    # Seed 0 reaches it at 30, seed 1 at 20 (exactly), seed 2 never: its 0.7 was later replaced by 0.4.
    np.testing.assert_array_equal(steps_to_reach(LINES, "valid/accuracy", 0.9), [30, 20, np.nan])
    np.testing.assert_array_equal(steps_to_reach(LINES, "valid/accuracy", 0.3), [20, 10, 10])


def test_a_metric_that_is_not_there():
    assert has_metric(LINES, "train/loss")
    assert not has_metric(LINES, "seconds") and not has_metric([], "train/loss")
    with pytest.raises(ValueError, match="no line holds the metric 'test/x'; there are: train/loss, valid/accuracy"):
        learning_curve(LINES, "test/x")
    with pytest.raises(ValueError, match="there are: none"):
        steps_to_reach([], "test/x", 0.5)


def test_lines_of_unequal_seeds_are_refused():
    with pytest.raises(ValueError, match=r"differ in their number of seeds: \[1, 3\]"):
        learning_curve([*LINES, {"step": 40, "valid/accuracy": [1.0]}], "valid/accuracy")


def test_doctests():
    assert doctest.testmod(curves) == (0, 5)
