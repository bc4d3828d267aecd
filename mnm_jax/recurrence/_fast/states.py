"""The weights and their cotangent at both ends of a sequence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax._masking import Steps
from mnm_jax._vary import vary_alike
from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._storage.dense import start as start_dense
from mnm_jax.memory._storage.factored import FactoredState, empty_pairs
from mnm_jax.recurrence._fast.record import Pairs

Array = jax.Array
Weights = tuple[Array, ...]
State = MemoryState | FactoredState
Sizes = tuple[tuple[int, int, int], ...]  # (rows per step, I, O) of each layer


class Start(NamedTuple):
    """The weights at the start of a run.

    Attributes:
      shared: `[I, O]` per layer, the weights after a reset and, without `own`, the first weights; or None.
      own: the first weights of every example, `[B, I, O]` per layer; or None.
    """

    shared: Weights | None
    own: Weights | None

    def dense(self, batch_size: int) -> MemoryState:
        """Returns the first weights of every example."""
        return start_dense(self.shared or (), batch_size) if self.own is None else MemoryState(self.own)


class Growth(NamedTuple):
    """The rows that a step adds to the cotangent of the weights, kept until the loop processes the step before it.

    Attributes:
      rows: one pair per layer, in the format of `Storage.subtract`.
      reset: the step's reset flags `[B]`, or None.
    """

    rows: Pairs
    reset: Array | None

    def add_to(self, cotangent: State) -> State:
        """Returns the cotangent of the weights before the step."""
        cotangent = cotangent.subtract(self.rows)
        if isinstance(cotangent, FactoredState) and self.reset is not None:
            return cotangent.reset(self.reset)
        return cotangent


def open_weights(start: Start, factored: bool, sizes: Sizes, dtype: jnp.dtype, xs: Steps) -> State:
    """Returns the storage of the first weights, with room for the writes of all steps if it is factored."""
    steps, batch_size = xs.inputs.shape[:2]
    if not factored:
        return start.dense(batch_size)
    state = FactoredState(
        shared=start.shared if start.own is None or xs.reset is not None else None,
        own=start.own,
        pairs=empty_pairs(sizes, batch_size, steps, dtype),
        count=jnp.zeros((), jnp.int32),
        first=None if xs.reset is None else jnp.zeros(batch_size, jnp.int32),
        was_reset=None if xs.reset is None or start.own is None else jnp.zeros(batch_size, bool),
    )
    return vary_alike((state, xs))[0]


def open_cotangent(dense: Weights | None, sizes: Sizes, dtype: jnp.dtype, xs: Steps) -> tuple[State, Growth]:
    """Returns the cotangent of the last weights, and a growth of zero rows.

    The cotangent is kept as the matrices `dense`. If they are None, it is zero and kept as factors, with room for
    `sizes` rows per step.
    """
    steps, batch_size = xs.inputs.shape[:2]
    nothing = jax.tree.map(lambda buffer: buffer[:, 0], empty_pairs(sizes, batch_size, 1, dtype))
    growth = Growth(nothing, None if xs.reset is None else jnp.zeros(batch_size, bool))
    if dense is not None:
        cotangent: State = MemoryState(dense)
    else:
        first = None if xs.reset is None else jnp.zeros(batch_size, jnp.int32)
        buffers = empty_pairs(sizes, batch_size, steps + 1, dtype)
        cotangent = FactoredState(shared=None, own=None, pairs=buffers, count=jnp.zeros((), jnp.int32), first=first)
    return vary_alike((cotangent, growth, xs))[:2]


def start_cotangent(start: Start, cotangent: State) -> Start:
    """Returns the cotangent of the start, from the cotangent of the first weights."""
    if isinstance(cotangent, MemoryState):
        if start.own is None:
            return Start(tuple(jnp.sum(w, 0) for w in cotangent.weights), None)
        return Start(None if start.shared is None else tuple(map(jnp.zeros_like, start.shared)), cotangent.weights)
    if start.own is None:
        return Start(cotangent.sum_of_pairs(), None)
    own = cotangent.fold()
    if start.shared is None:
        return Start(None, own)
    # Every episode that did not begin with an example's own weights began with the shared ones.
    return Start(tuple(all_ - jnp.sum(w, 0) for all_, w in zip(cotangent.sum_of_pairs(), own, strict=True)), own)
