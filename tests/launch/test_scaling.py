"""The scaling model: its terms against compiled programs, its times by hand."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from launch.runs.build import build_make_model
from launch.scaling import Chip, Cost, rows, step_cost, step_time

INPUTS, CLASSES = 64, 16


class Shapes:
    """Of a task, what a model asks for."""

    input_features, output_features = INPUTS, CLASSES

    def encoder(self, rngs):
        return lambda inputs: inputs


def compiled_gradient(model, batch):
    """The gradient of one time step of so many examples."""
    graphdef, params = nnx.split(build_make_model(model, Shapes())(nnx.Rngs(0)))

    def loss(params, inputs):
        output = nnx.merge(graphdef, params)(inputs, jnp.ones(inputs.shape[:2], bool), None)
        return jnp.sum(jnp.square(output.logits)) + jnp.sum(output.meta_loss)

    inputs = jax.ShapeDtypeStruct((1, batch, INPUTS), jnp.float32)
    return jax.jit(jax.grad(loss)).lower(params, inputs).compile()


def compiled_step(model, batch):
    """One time step of a cell, weights of an example each."""
    cell = build_make_model(model, Shapes())(nnx.Rngs(0)).cell
    graphdef, params = nnx.split(cell)
    carry = jax.eval_shape(lambda: cell.initialize_carry((batch, INPUTS)))
    inputs = jax.ShapeDtypeStruct((batch, INPUTS), jnp.float32)
    step = jax.jit(lambda params, carry, inputs: nnx.merge(graphdef, params)(carry, inputs), donate_argnums=1)
    return step.lower(params, carry, inputs).compile()


def per_example(compile_it, model, measure):
    """What an example costs: of 48 examples less of 16, so that what the batch does not change is left out."""
    few, many = (measure(compile_it(model, batch)) for batch in (16, 48))
    return (many - few) / 32


def sizes(name, heads=1, layers=2):
    model = {"name": name, "hidden_features": 128}
    return model if name == "lstm" else model | {"memory_features": 128, "memory_layers": layers, "heads": heads}


MEMORIES = [sizes("mnm-p"), sizes("mnm-p", heads=2), sizes("mnm-g", layers=3)]


def flops(program):
    return program.cost_analysis()["flops"]


@pytest.mark.parametrize("model", [sizes("lstm"), *MEMORIES])
def test_flops_are_those_of_a_compiled_step(model):
    read_out = 2 * CLASSES * (128 if model["name"] == "lstm" else 256)
    # What is no product of matrices makes the rest of the compiled ones.
    assert 1.0 < per_example(compiled_step, model, flops) / (step_cost(INPUTS, CLASSES, model).flops - read_out) < 1.15


@pytest.mark.parametrize("model", MEMORIES)
def test_a_gradient_is_three_forward_passes(model):
    assert 0.9 < per_example(compiled_gradient, model, flops) / (3 * step_cost(INPUTS, CLASSES, model).flops) < 1.1


@pytest.mark.parametrize("model", MEMORIES)
def test_bytes_are_those_of_a_compiled_step(model):
    cost = step_cost(INPUTS, CLASSES, model)
    moved = per_example(compiled_step, model, lambda program: program.cost_analysis()["bytes accessed"])
    assert 1.0 < moved / cost.moved < 1.3  # the rest are vectors
    kept = per_example(compiled_step, model, lambda program: program.memory_analysis().argument_size_in_bytes)
    assert kept == pytest.approx(cost.kept + 4 * INPUTS, rel=0.005)


def test_times_by_hand():
    chip = Chip(peak=1e12, bandwidth=1e11, link=1e10)
    cost = Cost(flops=1e6, moved=1e6, kept=0)
    step = step_time(cost, chip, chips=4, batch=10, steps=20, parameters=1_000_000, latency=1e-4)
    assert step.compute == pytest.approx(3 * 1e6 * 10 * 20 / 1e12)
    assert step.memory == pytest.approx(3 * 1e6 * 10 * 20 / 1e11)
    assert step.latency == pytest.approx(2e-3)
    # Three quarters of 4 MB, there and back, and two hops there and back.
    assert step.all_reduce == pytest.approx(2 * 0.75 * 4e6 / 1e10 + 4e-6)
    assert step.total == pytest.approx(6e-3 + 2e-3 + 6.04e-4)
    alone = step_time(cost, chip, chips=1, batch=10, steps=20, parameters=1_000_000, latency=1e-4)
    assert alone.all_reduce == 0
    first, second = rows(cost, chip, [4, 16], 10, steps=20, parameters=1_000_000, latency=1e-4)
    assert (first["chips"], first["batch"], second["batch"]) == ("4", "40", "160")
    assert first["weak"] == f"{8 / 8.604:.0%}"
    # On one chip 40 examples take 24 + 2 ms; on 16, 2.5 of them take 1.5 + 2 ms and an all-reduce of 0.762 ms.
    assert second["strong"] == f"{26 / (16 * (1.5 + 2 + 0.762)):.0%}"


def test_a_model_without_a_formula_is_named():
    with pytest.raises(ValueError, match="there is a formula for mnm-p, mnm-g and lstm, got 'dnc'"):
        step_cost(1, 1, {"name": "dnc", "hidden_features": 1})
