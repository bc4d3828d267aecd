"""Places the tokens of a call in chunks, continuing each example's last chunk and leaving out padding between tokens.

Shape letters: `T` time steps, `B` examples, `C` tokens of a chunk, `S` slots, a multiple of `C`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Slots(NamedTuple):
    """Slots for the tokens of a call.

    Attributes:
      tokens: the index of the token in each slot, `[S, B]`; arbitrary where `mask` is False.
      mask: whether a slot holds a token, `[S, B]`.
      places: the slot of each token, `[T, B]`; arbitrary for padding.
      ends: for each C slots, whether the example's chunk is complete after them, `[S / C, B]`.
      position: number of tokens in the last chunk after the call, `[B]`; 0 if it is complete.
    """

    tokens: Array
    mask: Array
    places: Array
    ends: Array
    position: Array

    def enter(self, tree: Any) -> Any:
        """Returns leaves `[T, B, ...]` as `[S, B, ...]`."""
        return jax.tree.map(lambda x: jnp.take_along_axis(x, self.tokens[..., None], axis=0), tree)

    def leave(self, x: Array) -> Array:
        """Returns `[S, B, ...]` as `[T, B, ...]`."""
        return jnp.take_along_axis(x, self.places[..., None], axis=0)


def align(position: Array, mask: Array, chunk: int, *, fresh: bool) -> Slots:
    """Returns the slots of the tokens of a call.

    Args:
      position: number of tokens of the current chunk before the call, `[B]`.
      mask: `[T, B]` bool, False = padding.
      chunk: number of tokens per chunk, `C`.
      fresh: whether all positions are 0; otherwise slots are reserved for C - 1 tokens before the call.
    """
    steps = len(mask)
    chunks = -(-(steps + (0 if fresh else chunk - 1)) // chunk)
    count = jnp.cumsum(mask, axis=0, dtype=jnp.int32)
    last = position + count[-1]
    order = jnp.argsort(~mask, axis=0, stable=True)  # tokens first
    rank = jnp.arange(chunks * chunk, dtype=jnp.int32)[:, None] - position[None]
    ends = chunk * jnp.arange(1, chunks + 1, dtype=jnp.int32)[:, None] <= last[None]
    return Slots(
        tokens=jnp.take_along_axis(order, jnp.clip(rank, 0, steps - 1), axis=0),
        mask=(rank >= 0) & (rank < count[-1:]),
        places=jnp.maximum(position[None] + count - 1, 0),
        ends=ends,
        position=last % chunk,
    )
