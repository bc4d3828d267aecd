"""Tests the options of the layer, by numbers computed from a layer without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import NeuralMemoryLayer, WriteOptions, matrix_memory
from tests.layers.common import make_form, make_inputs, run_by_chunks, run_by_steps

B, D, V = 2, 6, 3


def make(forget=False, **settings):
    memory = matrix_memory(4, V, options=WriteOptions("l2", forget=forget), learn_initial=True)
    return NeuralMemoryLayer(D, memory, heads=2, chunk=2, **settings, rngs=nnx.Rngs(0))


def test_output_norm_and_gate_are_numpys():
    """Outputs are compared before the output map, by its inverse; the options change no other initial parameters."""
    inputs = jax.random.normal(jax.random.key(0), (3, B, D))
    plain, both = make(), make(output_norm=True, output_gate=True)
    undo = np.linalg.inv(np.asarray(plain.to_output.kernel))
    reads = (np.asarray(run_by_chunks(plain, inputs)[1]) @ undo).reshape(3, B, 2, V)
    found = (np.asarray(run_by_chunks(both, inputs)[1]) @ undo).reshape(3, B, 2, V)
    logits = (np.asarray(inputs) @ np.asarray(both.to_output_gate.kernel)).reshape(reads.shape)
    normed = reads / np.sqrt(np.mean(reads**2, -1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(found, normed * logits / (1 + np.exp(-logits)), rtol=2e-3, atol=1e-4)


def test_forget_bias_sets_what_a_token_forgets_at_first():
    """A token of zeros writes nothing, so that the weights change by the forget gate alone."""
    layer = make(forget=True, forget_bias=-1.0)
    inputs = jnp.zeros((3, B, D)).at[0].set(jax.random.normal(jax.random.key(0), (B, D)))
    (before,), (after,) = (run_by_chunks(layer, inputs[:n])[0].memory.now.weights for n in (1, 3))
    np.testing.assert_allclose(after, before / (1 + np.exp(-1)) ** 2, rtol=1e-6)
    assert np.all(np.asarray(before) != 0)


def test_a_rate_of_two_reflects_the_value_of_a_key():
    """k W - v changes its sign: one write at rate one stores v, and one at rate two stores 2 v - k W."""
    layer = make(max_rate=2.0)
    layer.to_gates.bias[...] = jnp.full(2, 30.0)
    inputs = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, B, D)), (4, B, D))
    _, (features, losses) = run_by_chunks(layer, inputs, return_loss=True)
    np.testing.assert_allclose(losses[1:], losses[:-1], rtol=1e-4)
    np.testing.assert_allclose(features[2:], features[:2], atol=1e-5)  # two reflections
    assert np.all(np.abs(features[1] - features[0]).max(-1) > 0.1)


def test_a_hard_rate_is_a_stretched_sigmoid_that_reaches_both_bounds():
    """The rate 2 min(1, max(0, 1.2 sigmoid(z) - 0.1)) at the logits -1, 3 and -3 is 2 * 0.2227, 2 and 0."""
    soft, hard = make(max_rate=2.0), make(max_rate=2.0, hard_rate=True)
    np.testing.assert_allclose(1.2 / (1 + np.exp(-np.asarray(hard.to_gates.bias))) - 0.1, 0.88, atol=2e-3)
    assert np.all(np.asarray(hard.to_gates.kernel) == 0) and np.all(np.asarray(soft.to_gates.kernel) != 0)
    inputs, carry = jax.random.normal(jax.random.key(0), (2, B, D)), None
    soft.to_gates.kernel[...] = jnp.zeros((D, 2))
    gate = 1.2 / (1 + np.exp(1.0)) - 0.1
    for logit, same in ((-1.0, np.log(gate / (1 - gate))), (3.0, 40.0), (-3.0, -np.inf)):
        soft.to_gates.bias[...], hard.to_gates.bias[...] = jnp.full(2, same), jnp.full(2, logit)
        before = soft.initialize_carry((B, D)) if carry is None else carry
        carry, expected = run_by_chunks(soft, inputs, before)
        np.testing.assert_allclose(run_by_chunks(hard, inputs, before)[1], expected, rtol=1e-4, atol=1e-5)
    assert np.all(run_by_chunks(hard, inputs, before)[0].memory.now.weights[0] == before.memory.now.weights[0])
    assert np.any(np.asarray(before.memory.now.weights[0]) != 0)


@pytest.mark.slow
def test_losses_of_the_linearised_rule_are_those_of_single_tokens(x64):
    """Tokens include padding, whose losses are zero, and begin in the middle of a chunk of four tokens."""
    layer, inputs = make_form("gradient"), 0.5 * make_inputs(6)
    mask = jnp.ones((5, inputs.shape[1]), bool).at[1, 0].set(False)
    carry, _ = run_by_chunks(layer, inputs[:1])
    _, (_, losses) = run_by_chunks(layer, inputs[1:], carry, mask, return_loss=True)
    kept = jnp.concatenate([inputs[1:2], inputs[3:]])[:, :1]
    example = jax.tree.map(lambda x: x[:1], carry)
    _, (_, expected) = run_by_steps(layer, kept, example, return_loss=True)
    np.testing.assert_allclose(losses[np.array([0, 2, 3, 4]), :1], expected, rtol=1e-12)
    assert np.all(np.asarray(losses[1, 0]) == 0) and np.all(np.asarray(expected) > 0)
