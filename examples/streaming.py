"""Runs a cell step by step, as inputs arrive; the caller keeps the carry between calls, in memory or on disk.

Run it with `python -m examples.streaming`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax import MNMCell, gradient_memory, unroll


def stream(steps: int = 20) -> tuple[jax.Array, jax.Array]:
    """Returns the features `[T, B, F]` of inputs processed one by one, and in two calls of `unroll`."""
    cell = MNMCell(3, 8, gradient_memory(4, 4, hidden_sizes=(4,)), rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (steps, 2, 3))
    # `nnx.jit(cell)` would take the module apart at every call. The donated carry is updated in place.
    graphdef, params = nnx.split(cell)
    step = jax.jit(lambda params, carry, x: nnx.merge(graphdef, params)(carry, x), donate_argnums=1)

    carry, features = cell.initialize_carry((2, 3)), []
    for x in inputs:
        carry, output = step(params, carry, x)
        features.append(output.features)

    # The carry is a pytree of arrays: it can be stored anywhere, and a later call continues the sequence from it.
    half = steps // 2
    middle, first = unroll(cell, None, inputs[:half])
    _, second = unroll(cell, middle, inputs[half:])
    return jnp.stack(features), jnp.concatenate([first.features, second.features])


if __name__ == "__main__":
    one_by_one, in_two_parts = stream()
    print(f"largest difference {jnp.max(jnp.abs(one_by_one - in_two_parts)):.1e}")
