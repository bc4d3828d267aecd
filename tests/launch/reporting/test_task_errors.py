"""Tests the table of errors by task against values worked by hand."""

import numpy as np
import pytest

from launch.reporting.task_errors import end_table, errors_by_task, run_rows, seed_rows
from launch.runs.metrics import summarise

# Errors of two seeds as fractions: the first seed fails task 2, none fails task 10 (5% is not more than 5%).
METRICS = {
    "test/error": np.array([0.5, 0.5]),
    "test/task=10/error": np.array([0.05, 0.0]),
    "test/task=2/error": np.array([0.2, 0.01]),
    "test/task=2/loss": np.array([9.0, 9.0]),
    "valid/task=2/error": np.array([1.0, 1.0]),
}


def test_errors_are_those_of_the_test_tasks_in_natural_order():
    errors = errors_by_task(summarise(METRICS))
    assert list(errors) == ["2", "10"]
    assert errors["2"].tolist() == pytest.approx([20, 1])
    assert errors_by_task(summarise({"test/support=4/error": np.ones(1)})) == {}


def test_rows_by_hand():
    rows = seed_rows(errors_by_task(summarise(METRICS)), seeds=[3, 7])
    assert rows == [
        {"task": "2", "seed 3": "20.00", "seed 7": "1.00", "mean": "10.50", "std": "13.44", "best": "1.00"},
        {"task": "10", "seed 3": "5.00", "seed 7": "0.00", "mean": "2.50", "std": "3.54", "best": "0.00"},
        {"task": "mean", "seed 3": "12.50", "seed 7": "0.50", "mean": "6.50", "std": "8.49", "best": "0.50"},
        {"task": "failed", "seed 3": "1.00", "seed 7": "0.00", "mean": "0.50", "std": "0.71", "best": "0.00"},
    ]
    alone = seed_rows({"2": np.array([20.0])}, seeds=[0])
    assert alone[0] == {"task": "2", "seed 0": "20.00"}


def test_a_column_a_run():
    errors = errors_by_task(summarise(METRICS))
    rows = run_rows({"a": errors, "b": {"2": np.array([7.0])}})
    assert rows == [
        {"task": "2", "a": "10.50 +- 13.44", "b": "7.00"},
        {"task": "10", "a": "2.50 +- 3.54"},
        {"task": "mean", "a": "6.50 +- 8.49", "b": "7.00"},
        {"task": "best seed", "a": "0.50", "b": "7.00"},
        {"task": "failed", "a": "0.50 +- 0.71", "b": "1.00"},
    ]


def test_a_seed_that_was_lost_is_not_a_good_one():
    errors = errors_by_task(summarise({"test/task=1/error": np.array([np.nan])}))
    assert seed_rows(errors, [0])[1]["seed 0"] == "nan"


def test_another_task_keeps_a_line_a_metric():
    assert end_table(summarise({"test/accuracy": np.ones(1)}), [0]).splitlines()[1].startswith("test/accuracy")
    assert end_table(summarise(METRICS), [0, 1]).splitlines()[1] == "task    seed 0  seed 1  mean   std    best"
