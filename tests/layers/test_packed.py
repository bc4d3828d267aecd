"""Tests that documents packed into one row give the values and gradients of separate calls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnm_jax import WriteOptions
from tests.layers.common import (
    BOTH,
    TWO_LAYERS,
    B,
    D,
    assert_close,
    make_inputs,
    make_layer,
    make_memory,
    run_by_chunks,
    run_by_steps,
)

T = 8
# Where documents begin: in the middle of a chunk of three, at its beginning, twice within one, and on padding.
RESET = np.array([[0, 0, 1, 0, 1, 1, 0, 0], [1, 0, 0, 1, 0, 0, 1, 0]], bool).T
MASK = np.array([[1, 1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1, 0, 1]], bool).T
DOCUMENT = np.cumsum(RESET, 0)
THROUGH = TWO_LAYERS | {"write_through": True}
LAYERS = {
    "local": (("local", BOTH), THROUGH, {"convolution": 3}),
    "delta": (("delta", WriteOptions("l2", forget=True)), {}, {"convolution": 2}),
    "hebbian": (("hebbian", WriteOptions(momentum=True)), {}, {}),
    "local-deep": (("local", WriteOptions("l2")), {"hidden_sizes": (6, 6), "step_size": "paper"}, {}),
}


@functools.partial(jax.jit, static_argnums=0)
def differentiate(way, layer, *given):
    """Returns carry and outputs, and the gradients of their sines with respect to layer, inputs and first carry."""

    def value(layer, inputs, carry):
        carry, outputs = way(layer, inputs, carry, *given[2:])
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves((carry.memory, outputs))), (carry, outputs)

    (_, results), gradients = jax.value_and_grad(value, (0, 1, 2), has_aux=True)(layer, *given[:2])
    return results, jax.tree.leaves(gradients)


def packed(layer, inputs, carry):
    return layer(carry, inputs, mask=jnp.asarray(MASK), reset=jnp.asarray(RESET))


def separate(layer, inputs, carry):
    """Runs one call per document, in which the tokens of the other documents are padding."""
    outputs = 0
    for number in range(DOCUMENT.max() + 1):
        of_this = number == DOCUMENT
        begun = carry if number == 0 else layer.initialize_carry(inputs.shape[1:])
        new, own = layer(begun, inputs, mask=jnp.asarray(of_this & MASK))
        outputs = outputs + own
    return new, outputs  # both examples end in the last document


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_packed_documents_give_the_gradients_of_separate_calls(name, x64):
    layer, inputs, carry = make(name)
    found, expected = (differentiate(way, layer, inputs, carry) for way in (packed, separate))
    assert_close(found, expected)
    assert all(np.any(leaf != 0) for leaf in expected[1][:-1])


def make(name):
    memory, settings, of_layer = LAYERS[name]
    layer = make_layer(make_memory(*memory, **settings), chunk=3, **of_layer)
    return layer, make_inputs(T), jax.tree.map(lambda x: x + 0.1, layer.initialize_carry((B, D)))


def test_packed_documents_give_what_separate_calls_give(x64):
    """The reference is one call per document, in which the tokens of the other documents are padding."""
    layer, inputs, begun = make("local")
    found, outputs = run_by_chunks(layer, inputs, begun, jnp.asarray(MASK), jnp.asarray(RESET))
    fresh, expected = layer.initialize_carry((B, D)), 0
    for number in range(DOCUMENT.max() + 1):
        carry = begun if number == 0 else fresh
        last, own = run_by_chunks(layer, inputs, carry, jnp.asarray((number == DOCUMENT) & MASK))
        expected = expected + own
    assert_close((found, outputs), (last, expected))
    assert np.all(np.asarray(outputs)[~MASK] == 0)


@pytest.mark.parametrize("name", ["delta", pytest.param("gradient", marks=pytest.mark.slow)])
def test_a_step_may_begin_a_document(name, x64):
    """Every layer can begin a document at a step; the first example's begins at the fourth token, in a chunk."""
    memory = make_memory(name, BOTH, **(TWO_LAYERS if name == "gradient" else {}))
    layer, inputs = make_layer(memory, chunk=3, convolution=2), make_inputs(5)
    reset = jnp.zeros((5, B), bool).at[3, 0].set(True)
    carry, outputs = run_by_steps(layer, inputs, reset=reset)
    for example, begin in ((0, 3), (1, 0)):
        expected = run_by_chunks(layer, inputs[begin:, example : example + 1])
        assert_close(jax.tree.map(lambda x: x[example : example + 1], carry), expected[0])  # noqa: B023
        assert_close(outputs[begin:, example : example + 1], expected[1])


@pytest.mark.parametrize("name", ["delta", "gradient"])
def test_a_step_with_a_mask_is_a_call_with_one_token(name, x64):
    """In the middle of a chunk and at its end; in the second example, a document begins at a step."""
    memory = make_memory(name, BOTH, **(TWO_LAYERS if name == "gradient" else {}))
    layer, inputs = make_layer(memory, chunk=3, convolution=2), make_inputs(5)
    mask = jnp.ones((5, B), bool).at[2:4, 0].set(False)
    reset = jnp.zeros((5, B), bool).at[3, 1].set(True)
    padded = jnp.where(mask[..., None], inputs, jnp.nan)

    @jax.jit
    def step(layer, carry, x, mask, reset):
        gradient = jax.grad(lambda x: jnp.sum(layer.step(carry, x, mask=mask, reset=reset)[1] ** 2))(x)
        return *layer.step(carry, x, mask=mask, reset=reset, return_loss=True), gradient

    call = jax.jit(lambda layer, carry, x, mask: layer(carry, x[None], mask=mask[None], return_loss=True))
    carry = layer.initialize_carry((B, D))
    for t in range(5):
        begun = jax.tree.map(lambda a, b: a.at[1].set(b[1]) if t == 3 else a, carry, layer.initialize_carry((B, D)))  # noqa: B023
        new, results, gradient = step(layer, carry, padded[t], mask[t], reset[t])
        expected, one = call(layer, begun, padded[t], mask[t])
        assert_close((new, results), (expected, jax.tree.map(lambda x: x[0], one)))
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(begun), strict=True):
            np.testing.assert_array_equal(np.asarray(a)[~mask[t]], np.asarray(b)[~mask[t]])
        assert np.all(np.asarray(results.features)[~mask[t]] == 0) and np.all(results.features[mask[t]] != 0)
        assert np.all(np.asarray(gradient)[~mask[t]] == 0) and np.all(np.isfinite(gradient))
        carry = new


def test_a_mask_of_a_step_is_checked():
    layer = make_layer(make_memory("delta", dtype=jnp.float32), jnp.float32)
    with pytest.raises(TypeError, match=r"mask must be an array \[B\], got True of type bool: use jnp.full\(2, True\)"):
        layer.step(None, jnp.zeros((2, D)), mask=True)
    with pytest.raises(ValueError, match=r"mask must have shape \[B\] = \[2\], got \(3,\)"):
        layer.step(None, jnp.zeros((2, D)), mask=jnp.ones(3, bool))
