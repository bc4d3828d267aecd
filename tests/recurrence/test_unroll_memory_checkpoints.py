"""Tests that checkpoints of `unroll_memory` change only the memory of the backward pass."""

import jax
import jax.numpy as jnp
import pytest

from mnm_jax import WriteOptions, matrix_memory, unroll_memory
from tests.recurrence.test_unroll_memory import (
    MASK,
    RESET,
    B,
    K,
    V,
    assert_close,
    by_unroll,
    evaluate,
    hide_padding,
    make_tokens,
)


@pytest.mark.parametrize("options", [WriteOptions(), WriteOptions(forget=True)])
def test_checkpoints_change_no_value_and_no_gradient(options, x64):
    memory = matrix_memory(K, V, options=options, param_dtype=jnp.float64)
    tokens = hide_padding(make_tokens(2, 1, gates=memory.gates))
    found, expected = (
        evaluate(by_unroll, memory, *tokens, mask=MASK, reset=RESET, checkpoint_every=every) for every in (4, None)
    )
    assert_close(found, expected, 1e-12)


def test_checkpoints_bound_the_memory_of_gates():
    """With C = 8 of T = 128 steps: 16 states and the weights of 8 steps instead of 128."""
    memory = matrix_memory(32, 32, options=WriteOptions(forget=True))
    params, keys, rate = memory.init(jax.random.key(0)), jnp.zeros((128, B, 1, 32)), jnp.zeros((128, B))

    def temp_bytes(every):
        def loss(keys):
            given = (memory, params, None, keys, keys, rate, keys)
            return jnp.sum(unroll_memory(*given, forget=rate, checkpoint_every=every)[2] ** 2)

        return jax.jit(jax.grad(loss)).lower(keys).compile().memory_analysis().temp_size_in_bytes

    assert temp_bytes(8) < temp_bytes(None) / 3
