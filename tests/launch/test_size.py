"""The size of a model is what one counts by hand."""

import pytest

from launch.configs import training_section
from launch.runs.build import build_make_model, build_training
from launch.runs.size import measure, report
from launch.scaling import step_cost
from tasks.dictionary import Dictionary
from tasks.maze import MazeTask

TASK = Dictionary(length=1, support=4, queries=4)
LSTM = {"name": "lstm", "hidden_features": 32}
MEMORY = {"name": "mnm-p", "hidden_features": 64, "heads": 2, "memory_features": 32, "memory_layers": 2}
TRAINING = training_section(steps=1, batch_size=8, seeds=2, learning_rate=1e-3)


def test_an_lstm_by_hand():
    d, h, classes = TASK.input_features, 32, TASK.output_features
    size = measure(build_make_model(LSTM, TASK), TASK)
    assert size.parameters == 4 * h * (d + h + 1) + classes * (h + 1)
    assert size.parameter_bytes == 4 * size.parameters
    assert (size.carry, size.memory) == (4 * 2 * h, 0)
    assert size.flops == pytest.approx(8 * h * (d + h) + 2 * h * classes, rel=0.1)
    batch = next(iter(TASK.evaluations("test", 1)[""]()))
    assert size.steps == batch.inputs.shape[0]


@pytest.mark.parametrize("rule", ["mnm-p", "mnm-g"])
def test_a_memory_agrees_with_the_formula_of_the_scaling_model(rule):
    model = MEMORY | {"name": rule}
    size = measure(build_make_model(model, TASK), TASK)
    assert size.memory == 4 * 2 * 32 * 32
    assert size.carry == size.memory + 4 * (2 * 64 + 32)
    expected = step_cost(TASK.input_features, TASK.output_features, model).flops
    assert size.flops == pytest.approx(expected, rel=0.2)


def test_a_task_that_is_played_is_measured_without_playing():
    task = MazeTask(size=5, episode_steps=7)
    size = measure(build_make_model({"name": "lstm", "hidden_features": 8}, task), task)
    assert size.steps == 7


def test_the_line_at_the_start_counts_an_update():
    size = measure(build_make_model(LSTM, TASK), TASK)._replace(flops=1e6, steps=10, parameter_bytes=3 * 2**20)
    text = report(size, build_training(TRAINING))
    assert "an update (T 10, B 8, seeds 2)" in text
    assert "0.48 GFLOP" in text  # 3 passes of 10 steps of 8 examples of 2 seeds, 1 MFLOP each
    assert "3.0 MiB" in text
