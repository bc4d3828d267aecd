"""Episodes of unequal length packed into rows, one after the other: a reset begins the next with a new memory.

Run it by `python -m examples.packed_episodes [--smoke]`.
"""

import sys

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax import MNMCell, local_memory, unroll


def pack(lengths: tuple[int, ...] = (5, 3, 4)) -> tuple[jax.Array, jax.Array]:
    """Features `[T, F]` of episodes packed into one row, and of each by itself, one behind the other."""
    cell = MNMCell(3, 8, local_memory(4, 4, hidden_sizes=(4,)), rngs=nnx.Rngs(0))
    episodes = [jax.random.normal(jax.random.key(i), (length, 3)) for i, length in enumerate(lengths)]

    row = jnp.concatenate(episodes)[:, None]  # [T, B = 1, D]
    starts = jnp.cumsum(jnp.array((0, *lengths[:-1])))
    reset = jnp.zeros(row.shape[:2], bool).at[starts].set(True)
    _, packed = unroll(cell, None, row, reset=reset)  # what came before a reset has no influence, and gets no gradient

    alone = [unroll(cell, None, episode[:, None])[1].features for episode in episodes]
    return packed.features[:, 0], jnp.concatenate(alone)[:, 0]


if __name__ == "__main__":
    packed, alone = pack((2, 1) if "--smoke" in sys.argv else (5, 3, 4))
    print(f"largest difference {jnp.max(jnp.abs(packed - alone)):.1e}")
