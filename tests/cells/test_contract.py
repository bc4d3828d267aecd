"""Tests the contracts of `mnm_jax.testing` for every cell, and further properties of this library's own cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mnm_jax
from mnm_jax import MemoryCell, MNMCell, gradient_memory, local_memory, testing, unroll

B, D = 3, 6


def test_every_exported_cell_is_here(common):
    exported = {getattr(mnm_jax, name) for name in mnm_jax.__all__ if name.endswith("Cell")}
    assert exported - {MemoryCell} == {type(make(jnp.float32)) for make in common.CELLS.values()}


def test_dtypes(make):
    testing.check_dtypes(make)
    for param_dtype, dtype in [(jnp.float32, None), (jnp.bfloat16, None), (jnp.float32, jnp.bfloat16)]:
        cell = make(param_dtype, dtype=dtype)
        assert (cell.param_dtype, cell.dtype) == (param_dtype, dtype or param_dtype)


def test_the_number_of_features(make, common):
    cell = make(jnp.float32)
    assert jax.eval_shape(common.features, cell, common.inputs(jnp.float32)).shape[-1] == cell.out_features


SINGLE = [testing.check_carry, testing.check_extremes]
DOUBLE = [
    testing.check_unroll,
    testing.check_masking,
    testing.check_resets,
    testing.check_causality,
    testing.check_isolation,
    testing.check_flax_rnn,
]
by_name = {"ids": lambda check: check.__name__}


@pytest.mark.parametrize("check", SINGLE, **by_name)
def test_single_precision(check, make):
    check(make(jnp.float32))


@pytest.mark.parametrize("check", DOUBLE, **by_name)
def test_double_precision(check, make, x64):
    check(make(jnp.float64))


def assert_finite(value_and_gradient):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(value_and_gradient))


@jax.jit
def value_and_gradient(cell, x):
    def value(cell, x):
        carry, outputs = unroll(cell, cell.initialize_carry(x.shape[1:]), x)
        floats = [y for y in jax.tree.leaves((carry, outputs)) if jnp.issubdtype(y.dtype, jnp.floating)]
        return sum(jnp.sum(y) for y in floats)

    return jax.value_and_grad(value, argnums=(0, 1))(cell, x)


@pytest.mark.parametrize("factory", [gradient_memory, local_memory])
def test_huge_keys_and_values_stay_finite(factory, common):
    """Unlike tanh, a layer norm does not bound keys: here they are several thousand."""
    memory = factory(4, 4, hidden_sizes=(4,))
    cell = MNMCell(D, 5, memory, heads=2, interaction="layer_norm", rngs=nnx.Rngs(0))
    cell.norm.scale[...] *= 5e3
    x = common.inputs(jnp.float32)
    _, outputs = unroll(cell, cell.initialize_carry((B, D)), x)
    assert np.abs(outputs.trace.write_keys).max() > 5e3
    assert_finite(value_and_gradient(cell, x))


def test_bfloat16_computation_keeps_float32_parameters_and_approximates_their_numbers(make, common):
    """Gradients of float32 parameters are float32; numbers agree within a few roundings of bfloat16."""
    half, whole = make(jnp.float32, dtype=jnp.bfloat16), make(jnp.float32)
    x = common.inputs(jnp.float32)

    def run(cell):
        loss = lambda cell: jnp.mean(common.features(cell, x).astype(jnp.float32) ** 2)  # noqa: E731
        return common.features(cell, x), jax.grad(loss)(cell)

    (found, of_half), (expected, of_whole) = run(half), run(whole)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.05 * np.abs(expected).max())
    assert {leaf.dtype for leaf in jax.tree.leaves(of_half)} == {jnp.dtype(jnp.float32)}
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(of_whole))
    for a, b in zip(jax.tree.leaves(of_half), jax.tree.leaves(of_whole), strict=True):
        np.testing.assert_allclose(a, b, atol=0.1 * largest)
