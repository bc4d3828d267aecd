"""Tests rules of a user that compute partly in float32, in a cell in bfloat16 with weights in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import MNMCell, rule_memory, unroll
from mnm_jax.memory import Pair
from mnm_jax.testing import check_memory_forms

K, T, B, D = 4, 5, 2, 3
FORMS = ("plain", "auto", "reversible", "factored")


def wide_delta(network, weights, keys, values):
    """Returns a delta in float32, from an exact norm of the keys."""
    answers, wide = weights.product(0, keys), keys.astype(jnp.float32)
    delta = (answers - values).astype(jnp.float32) / (jnp.sum(wide * wide, -1, keepdims=True) + 1e-3)
    return (Pair(keys, delta),), answers


def wide_product(network, weights, keys, values):
    """Multiplies the weights by keys in float32."""
    answers = weights.product(0, keys.astype(jnp.float32)).astype(keys.dtype)
    return (Pair(keys, answers - values),), answers


def differentiate(rule, form):
    """Returns the features and the gradient of the inputs."""
    cell = MNMCell(D, 4, rule_memory(K, K, rule), dtype=jnp.bfloat16, param_dtype=jnp.float32, rngs=nnx.Rngs(0))

    def loss(x):
        features = unroll(cell, None, x, form=form)[1].features
        return jnp.sum(jnp.sin(features.astype(jnp.float32))), features

    x = jax.random.normal(jax.random.key(0), (T, B, D), jnp.bfloat16)
    gradient, features = jax.jit(jax.grad(loss, has_aux=True))(x)
    return features.astype(jnp.float32), gradient.astype(jnp.float32)


def test_a_delta_in_float32_is_written_in_the_dtype_of_the_keys_in_every_form():
    expected, *others = (differentiate(wide_delta, form) for form in FORMS)
    for found in others:
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=0.05 * np.abs(b).max())  # bfloat16 has 8 bits


def test_a_product_in_another_dtype_is_refused_by_name():
    expected, found = (differentiate(wide_product, form) for form in ("plain", "auto"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    for form in ("reversible", "factored"):
        with pytest.raises(ValueError, match="write rule, .* rows in float32 and in bfloat16: use astype .*'plain'"):
            differentiate(wide_product, form)


@pytest.mark.slow
def test_the_contract_of_forms_includes_a_cell_in_bfloat16(x64):
    def fails(network, weights, keys, values):
        answers = weights.product(0, keys)
        if keys.dtype == jnp.bfloat16:
            raise TypeError("no numbers in bfloat16")
        return (Pair(keys, answers - values),), answers

    check_memory_forms(rule_memory(K, K, wide_product, param_dtype=jnp.float32))
    with pytest.raises(AssertionError, match="^check_memory_forms failed.* no numbers in bfloat16"):
        check_memory_forms(rule_memory(K, K, fails, param_dtype=jnp.float64))
