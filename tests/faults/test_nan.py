"""Tests the search for the operation behind a NaN, and continuing a run from before it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnm_jax.training import TrainingFault, discard_fault, explain_fault, read_metrics, train
from mnm_jax.training._explain import find_origins
from tests.faults.conftest import contents
from tests.training.conftest import Model, Recall, config


def zero(position, batch):
    return batch._replace(inputs=np.zeros_like(batch.inputs)) if position == 5 else None


def settings(**changes):
    return config(**{"seeds": 2, "steps": 8, "eval_every": 8, "log_every": 4, "checkpoint_seconds": 0.0} | changes)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Returns the folder of a run whose sixth batch is zero, at which the square root of a norm has no derivative."""
    folder = tmp_path_factory.mktemp("nan") / "run"
    with pytest.raises(TrainingFault, match=r"seed 3: gradient of cell\.weights\[0\] is not finite at update 6\. "):
        train(Recall(reads=True, before=zero), Model, settings(), folder, devices=jax.devices()[:1])
    return folder


def test_the_operation_and_the_leaf_are_named_from_the_run_alone(stopped):
    before = contents(stopped)
    text = explain_fault(Recall(reads=True, before=zero), Model, settings(), stopped)
    assert text.startswith("seed 3: gradient of cell.weights[0] is not finite at update 6. It comes from the operation")
    assert " div at training/conftest.py:" in text and "(Model.__call__)" in text
    assert "from 0 to 0" in text and "\n" not in text  # the norm by which the derivative divides
    assert contents(stopped) == before


def test_a_run_without_a_fault_has_nothing_to_explain(reference):
    with pytest.raises(ValueError, match="holds no run that stopped at a fault"):
        explain_fault(Recall(reads=True), Model, config(seeds=1), reference.folder)
    with pytest.raises(ValueError, match="holds no run that stopped at a fault; its newest checkpoint is of update 4"):
        discard_fault(reference.folder)
    with pytest.raises(ValueError, match="no run that stopped at a fault; its newest checkpoint is of update 0"):
        discard_fault(reference.folder / "nowhere")


def test_a_stopped_run_continues_from_before_the_fault_with_another_learning_rate(stopped, tmp_path):
    before = read_metrics(stopped)
    assert discard_fault(stopped) == 5 == discard_fault(stopped)  # again, as after a kill
    assert sorted(path.name for path in (stopped / "checkpoints").iterdir())[-1] == "6.fault"
    task, slower = Recall(reads=True), settings(learning_rate=0.05)
    found = train(task, Model, slower, stopped, devices=jax.devices()[:1])
    assert found.steps == 8 and read_metrics(stopped)[: len(before)] == before
    with pytest.raises(ValueError, match="its newest checkpoint is of update 8"):
        discard_fault(stopped)  # it has got beyond the fault


def inverse(x, masked):
    """Divides in a scan by a value that reaches 0; the masked logarithms are not finite either, and reach no result."""

    def step(carry, row):
        value = 1 / row
        hidden = jnp.where(masked, jnp.log(-jnp.abs(row) - 1), 0.0)
        return carry + jnp.tanh(value), (value * 2, hidden)

    total, (doubled, hidden) = jax.lax.scan(step, jnp.zeros(()), x)
    return total, doubled, hidden, jnp.sum(doubled)


def test_origins_by_hand():
    x = jnp.array([1.0, 2.0, 0.0, 4.0])
    total, doubled, hidden, summed = find_origins(jax.jit(inverse), x, jnp.array(False))
    assert total is None and hidden is None  # tanh(inf) = 1, and the logarithms are masked
    assert doubled == summed
    assert "the operation div at faults/test_nan.py:" in doubled and "step), in iteration 2 of 4, with" in doubled
    assert "from 1 to 1 and " in doubled and doubled.endswith("float32[] from 0 to 0")
    *_, hidden, _ = find_origins(inverse, x, jnp.array(True))
    assert "the operation log at" in hidden and "in iteration 0 of 4" in hidden
    gradient = find_origins(jax.grad(lambda x: jnp.sum(inverse(x, jnp.array(False))[1])), x)
    assert "in iteration 2 of 4" in gradient[0]


@pytest.mark.parametrize(
    ("function", "name", "place"),
    [
        (lambda x: jax.lax.while_loop(lambda x: x[0] < 300, lambda x: x * x, x), "mul", "in iteration 0"),
        (lambda x: jax.lax.cond(x[0] > 0, jnp.log, jnp.exp, x - 25), "log", ""),
        (lambda x: jax.checkpoint(lambda x: jnp.sqrt(x - 25))(x), "sqrt", ""),
        (lambda x: jax.nn.relu(x) / (x - 20), "div", ""),
        (lambda x: jnp.where(x > 0, x, jnp.inf) + x - jnp.inf, "sub", ""),
    ],
)
def test_operations_are_found_within_every_control_flow(function, name, place):
    (origin,) = find_origins(function, jnp.array([20.0, 1e30]))
    assert f"the operation {name}" in origin and place in origin


def test_a_finite_result_has_no_origin_and_a_wrong_input_is_named():
    assert find_origins(lambda x, key: x + jax.random.normal(key), jnp.ones(()), jax.random.key(0)) == [None]
    assert find_origins(lambda x: -x, jnp.array(jnp.nan)) == ["an input of the update"]
