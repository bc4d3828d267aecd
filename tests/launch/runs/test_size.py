"""Tests the size of a model against values worked by hand."""

import itertools
import types

import jax
import numpy as np
import pytest

from launch.configs import training_section
from launch.runs.build import build_make_model, build_training
from launch.runs.size import batch_shape, describe, measure, sequence_shape
from tasks.dictionary import Dictionary
from tasks.maze import MazeTask

TASK = Dictionary(length=1, support=4, queries=4)
LSTM = {"name": "lstm", "hidden_features": 32}
MEMORY = {"name": "mnm-p", "hidden_features": 64, "heads": 2, "memory_features": 32, "memory_layers": 2}
TRAINING = build_training(training_section(steps=1, batch_size=8, seeds=2, learning_rate=1e-3))


def test_an_lstm_by_hand():
    d, h, classes = TASK.input_features, 32, TASK.output_features
    size = measure(build_make_model(LSTM, TASK), TASK, TRAINING)
    assert size.parameters == 4 * h * (d + h + 1) + classes * (h + 1)
    assert size.parameter_bytes == 4 * size.parameters
    assert (size.carry, size.memory) == (4 * 2 * h, 0)
    assert size.flops == pytest.approx(8 * h * (d + h) + 2 * h * classes, rel=0.1)
    assert (size.steps, size.rows) == TASK.sample(jax.random.key(0), 8).mask.shape


@pytest.mark.parametrize(("rule", "passes"), [("mnm-p", 4 * 2), ("mnm-g", 4 * 2 - 1)])
def test_a_memory_by_hand(rule, passes):
    """Counts products of H rows with a layer: L each for f(k^w), the update and f(k^r); L target maps or L - 1 vjps."""
    size = measure(build_make_model(MEMORY | {"name": rule}, TASK), TASK, TRAINING)
    h, d, heads, inputs, classes = 64, 32, 2, TASK.input_features, TASK.output_features
    assert size.memory == 4 * 2 * d * d
    assert size.carry == size.memory + 4 * (2 * h + d)
    lstm, maps, read_out = 8 * h * (inputs + d + h), 2 * h * d * (1 + 3 * heads) + 2 * d, 2 * (h + d) * classes
    assert size.flops == pytest.approx(lstm + maps + read_out + passes * 2 * heads * d * d, rel=0.2)


def test_a_task_that_is_played_is_measured_without_playing():
    task = MazeTask(size=5, episode_steps=7)
    size = measure(build_make_model({"name": "lstm", "hidden_features": 8}, task), task, TRAINING)
    assert (size.steps, size.rows) == (7, 8)


def test_a_task_without_the_trained_setting_is_named():
    task = types.SimpleNamespace(name="own", evaluations=lambda split, batch_size: {"long": list})
    with pytest.raises(ValueError, match=r'task own must have the trained setting as the set "", got \[.long'):
        sequence_shape(task, None)


def test_the_batches_of_a_loader_are_averaged_over_all_their_steps():
    class Files:
        sample = None

        def loader(self, seed, batch_size):
            for number in itertools.count(seed):
                steps, rows = (10, batch_size) if number % 2 else (50, 1)
                yield types.SimpleNamespace(mask=np.ones((steps, rows), bool))

    steps, rows = batch_shape(Files(), TRAINING)
    assert rows == (8 + 1) / 2 and steps * rows == (10 * 8 + 50 * 1) / 2


def test_the_line_at_the_start_counts_an_update():
    size = measure(build_make_model(LSTM, TASK), TASK, TRAINING)._replace(
        flops=1e6, steps=10, rows=8, parameter_bytes=3 * 2**20
    )
    text = describe(size, TRAINING)
    # 3 passes of 10 steps of 8 examples of 2 seeds, 1 MFLOP each.
    assert "0.48 GFLOP per update (T 10, B 8, seeds 2)" in text
    assert "3.0 MiB" in text
