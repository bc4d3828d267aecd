"""Packs episodes of unequal length into one sequence: a reset starts each episode with a new memory.

Run it with `python -m examples.packed_episodes`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax import MNMCell, local_memory, unroll


def pack(lengths: tuple[int, ...] = (5, 3, 4)) -> tuple[jax.Array, jax.Array]:
    """Returns the features `[T, F]` of packed episodes, and of separately run episodes, concatenated."""
    cell = MNMCell(3, 8, local_memory(4, 4, hidden_sizes=(4,)), rngs=nnx.Rngs(0))
    episodes = [jax.random.normal(jax.random.key(i), (length, 3)) for i, length in enumerate(lengths)]

    row = jnp.concatenate(episodes)[:, None]  # [T, B = 1, D]
    starts = jnp.cumsum(jnp.array((0, *lengths[:-1])))
    reset = jnp.zeros(row.shape[:2], bool).at[starts].set(True)
    _, packed = unroll(cell, None, row, reset=reset)  # steps before a reset have no effect on it and get no gradient

    separate = [unroll(cell, None, episode[:, None])[1].features for episode in episodes]
    return packed.features[:, 0], jnp.concatenate(separate)[:, 0]


if __name__ == "__main__":
    packed, separate = pack()
    print(f"largest difference {jnp.max(jnp.abs(packed - separate)):.1e}")
