"""Tests that chunks of any size give the values, states and gradients of the memory's own writes, token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnm_jax import WriteOptions
from mnm_jax.memory import ErrorRule, Pair, SnapshotRule, rule_memory
from tests.layers.common import (
    BOTH,
    TWO_LAYERS,
    K,
    V,
    assert_close,
    make_form,
    make_inputs,
    make_layer,
    make_memory,
    run_by_chunks,
    run_by_steps,
    write_token_by_token,
)

PLAIN, ALL = WriteOptions(), WriteOptions("layer", forget=True, momentum=True)
DEEP = {"hidden_sizes": (6, 5)}
BIAS = {"use_bias": True, "activation": jnp.sin}
EXACT = {
    "local": ("local", PLAIN, DEEP),
    "local-gates": ("local", ALL, DEEP),
    "local-sum": ("local", ALL, DEEP | BIAS | {"step_size": "sum", "condition_on_key": True}),
    "local-paper-forget": ("local", WriteOptions("l2", forget=True), DEEP | {"step_size": "paper"}),
    "local-momentum": ("local", WriteOptions("l2", momentum=True), TWO_LAYERS),
    "local-linear": ("local", ALL, {"step_size": "paper"}),
    "through": ("local", ALL, TWO_LAYERS | {"write_through": True}),
    "through-pre": ("local", ALL, DEEP | BIAS | {"write_through": True, "pre_activation": True}),
    "through-plain": ("local", PLAIN, DEEP | {"write_through": True, "step_size": "sum"}),
    "gradient-linear": ("gradient", ALL, {}),
    "delta": ("delta", WriteOptions("l2", forget=True), {}),
    "hebbian": ("hebbian", ALL, {}),
}
# The gradient rule through hidden layers is exact for chunks of one token alone.
ONE_BY_ONE = {
    "gradient": ("gradient", PLAIN, DEEP),
    "gradient-gates": ("gradient", ALL, DEEP | BIAS),
    "gradient-sum": ("gradient", WriteOptions("l2", momentum=True), TWO_LAYERS | {"step_size": "sum"}),
    "gradient-paper": ("gradient", WriteOptions("l2", forget=True), TWO_LAYERS | {"step_size": "paper"}),
}


SLOW = ("local-paper-forget", "local-momentum", "through", "through-plain")  # their settings are tested in the others


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in (*EXACT, *ONE_BY_ONE)]
)
def test_chunks_give_the_memorys_own_writes(name, x64):
    rule, options, settings = (EXACT | ONE_BY_ONE)[name]
    of_layer = {"max_rate": 1.5, "hard_rate": True} if name == "through-pre" else {}
    layer = make_layer(make_memory(rule, options, **settings), heads=2, chunk=3 if name in EXACT else 1, **of_layer)
    assert layer.exact
    inputs = 0.5 * make_inputs(5)
    states, expected, losses = jax.jit(write_token_by_token)(layer, inputs)
    for run in (run_by_chunks, run_by_steps):
        carry, outputs = run(layer, inputs, return_loss=True)
        assert_close((*carry.memory.now, *outputs), (*states, expected, losses))


@functools.cache
def differentiated(chunk, steps=35, **settings):
    """Returns outputs, states and gradients of a deep local memory; by `Memory.write_read` for chunks of None."""
    layer = make_layer(make_memory("local", BOTH, **DEEP, **settings), heads=2, chunk=chunk or 1)

    def value(layer, inputs):
        if chunk is None:
            states, outputs, _ = write_token_by_token(layer, inputs)
        else:
            carry, outputs = layer(None, inputs)
            states = tuple(carry.memory.now)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves((states, outputs))), (states, outputs)

    run = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))
    (_, results), gradients = run(layer, make_inputs(steps))
    return results, jax.tree.leaves(gradients)


@pytest.mark.parametrize(
    "chunk",
    [*(pytest.param(chunk, marks=pytest.mark.slow) for chunk in (1, 3)), 16, pytest.param(64, marks=pytest.mark.slow)],
)
def test_any_chunk_size_gives_the_gradients_of_the_memorys_own_writes(chunk, x64):
    """35 tokens: whole chunks and a rest; chunks of 64 are substituted in several blocks."""
    expected = differentiated(None)
    assert_close(differentiated(chunk), expected, rtol=2e-12)
    assert all(np.any(leaf != 0) for leaf in expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 3, 16])
@pytest.mark.parametrize("pre_activation", [False, True])
def test_any_chunk_size_gives_the_gradients_of_writing_through(pre_activation, chunk, x64):
    settings = {"steps": 19, "write_through": True, "pre_activation": pre_activation}
    expected = differentiated(None, **settings)
    assert_close(differentiated(chunk, **settings), expected, rtol=2e-12)
    assert all(np.any(leaf != 0) for leaf in expected[1])


def test_the_states_of_any_chunk_size_can_be_handed_over(x64):
    inputs, memory = make_inputs(11), make_memory("local", BOTH, **DEEP)
    expected = run_by_chunks(make_layer(memory, chunk=64), inputs)
    carry, outputs = None, []
    for chunk, part in ((2, slice(0, 5)), (7, slice(5, 11))):
        carry, output = run_by_chunks(make_layer(memory, chunk=chunk), inputs[part], carry)
        outputs.append(output)
    assert_close((carry, np.concatenate(outputs)), expected)


@pytest.mark.parametrize("name", ["local", "gradient"])
def test_derivatives_of_first_and_second_order(name, x64):
    """Compares with finite differences; the second order is forward mode over reverse mode."""
    layer = make_form(name, chunk=2)
    inputs, along = (0.5 * make_inputs(4)[:, example : example + 1] for example in range(2))
    value = lambda inputs: jnp.sum(jnp.sin(layer(None, inputs)[1]))  # noqa: E731

    @jax.jit
    def derivatives(inputs):
        return jax.jvp(jax.value_and_grad(value), (inputs,), (along,))

    (_, slope), (forward, second) = derivatives(inputs)
    (later, later_slope), (earlier, earlier_slope) = (derivatives(inputs + h * along)[0] for h in (1e-5, -1e-5))
    np.testing.assert_allclose((later - earlier) / 2e-5, jnp.vdot(slope, along), rtol=1e-6)
    np.testing.assert_allclose(forward, jnp.vdot(slope, along), rtol=1e-12)
    np.testing.assert_allclose((later_slope - earlier_slope) / 2e-5, second, rtol=1e-6, atol=1e-6)


class Shrinking(ErrorRule):
    """An error rule whose targets depend on the fast weights."""

    def layer_targets(self, network, targets, weights, keys, values):
        return (0.5 * weights.product(0, keys),)

    def steps(self, inputs, errors):
        return tuple(map(Pair, inputs, errors))

    def step_scale(self, inputs, features):
        return jnp.ones_like(inputs[..., :1])


class Erasing(SnapshotRule):
    """A rule whose pairs depend on the weights."""

    def pairs(self, network, targets, weights, keys, values):
        return self.row_pairs(network, targets, weights, keys, values), weights.product(0, keys)

    def row_pairs(self, network, targets, weights, keys, values):
        return (Pair(keys, weights.product(0, keys) - values),)


class GainDelta(SnapshotRule):
    """The delta rule with a learned gain per feature."""

    def init(self, network, key, dtype):
        return {"gain": jnp.full(network.sizes[-1], 0.3, dtype)}

    def pairs(self, network, targets, weights, keys, values):
        return self.row_pairs(network, targets, weights, keys, values), weights.product(0, keys)

    def row_pairs(self, network, targets, weights, keys, values):
        gain = targets["gain"].astype(keys.dtype)[None, None]
        return (Pair(keys, gain * (weights.product(0, keys) - values)),)


def test_a_rule_with_learned_parameters_of_each_head_gives_the_memorys_own_writes(x64):
    memory, inputs = rule_memory(K, V, GainDelta(), options=BOTH, param_dtype=jnp.float64), make_inputs(5)
    one, three = (make_layer(memory, heads=2, chunk=chunk) for chunk in (1, 3))
    carry, outputs = run_by_chunks(one, inputs)
    assert_close(
        ((carry.memory.now.weights, carry.memory.now.surprise), outputs), write_token_by_token(one, inputs)[:2]
    )
    assert_close(run_by_steps(three, inputs)[1], run_by_chunks(three, inputs)[1])
    for layer in (one, three):
        gradient = jax.grad(lambda layer: jnp.sum(run_by_chunks(layer, inputs)[1] ** 2))(layer)
        gain = gradient.memory_params.get_value().targets["gain"]
        assert gain.shape == (2, V) and np.all(gain != 0)


def test_targets_that_depend_on_the_weights_are_refused():
    with pytest.raises(ValueError, match="layer_targets do not depend on the fast weights.*step by step in MNMCell"):
        make_layer(rule_memory(K, V, Shrinking()), jnp.float32)


def test_exact_is_true_where_the_chunk_size_changes_nothing(x64):
    inputs = 0.5 * make_inputs(6)
    erasing = rule_memory(K, V, Erasing(), options=WriteOptions("l2"), param_dtype=jnp.float64)
    for memory, exact in (
        (make_memory("gradient", BOTH, **TWO_LAYERS), False),
        (make_memory("hebbian", BOTH), True),
        (erasing, False),
    ):
        one, three = (make_layer(memory, chunk=chunk) for chunk in (1, 3))
        assert one.exact and three.exact == exact
        equal = np.allclose(run_by_chunks(one, inputs)[1], run_by_chunks(three, inputs)[1], rtol=0, atol=1e-12)
        assert equal == exact
