"""Tests `MNMCell(equal_keys=True)`: read keys that start equal to write keys."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax import MNMCell, local_memory
from mnm_jax._params import set_bias


def first_step(equal_keys):
    """Returns the trace of a first step at a write rate near 1, with two heads, K = 3 and V = 2."""
    memory = local_memory(3, 2, hidden_sizes=())
    cell = MNMCell(4, 5, memory, heads=2, equal_keys=equal_keys, rngs=nnx.Rngs(0))
    set_bias(cell.rate, jnp.full(1, 20.0))
    inputs = jax.random.normal(jax.random.key(1), (6, 4))
    return cell(cell.initialize_carry((6, 4)), inputs)[1].trace


def test_a_first_read_finds_the_value_written_in_its_step():
    equal, apart = jax.jit(lambda: (first_step(True), first_step(False)))()
    np.testing.assert_array_equal(equal.read_keys, equal.write_keys)
    np.testing.assert_allclose(equal.read_values, equal.write_values, rtol=1e-4, atol=1e-4)
    assert jnp.max(jnp.abs(equal.write_keys[:, 0] - equal.write_keys[:, 1])) > 0.1  # each head has its own key
    assert jnp.max(jnp.abs(apart.read_values - apart.write_values)) > 0.1
    for name in ("write_keys", "write_values", "rate"):  # a cell without the option has the same other numbers
        np.testing.assert_array_equal(getattr(equal, name), getattr(apart, name))
