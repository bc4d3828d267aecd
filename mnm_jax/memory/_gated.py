"""Fast weights with forgetting, momentum or an inner optimiser.

Shape letter: `B` examples.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax.memory._norms import gated, norm
from mnm_jax.memory._options import WriteOptions
from mnm_jax.memory._storage.dense import MemoryState

Array = jax.Array


class GatedState(NamedTuple):
    """Fast weights, and the state that a write passes to the next one.

    Attributes:
      weights: phi_t, leaves `[B, ...]`.
      surprise: the running write S_t, leaves `[B, ...]`; None without momentum.
      optimizer: the state of the optimiser, leaves `[B, ...]`; None without one.
    """

    weights: Any
    surprise: Any
    optimizer: Any

    @property
    def batch_size(self) -> int:
        """The number of examples `B`."""
        return jax.tree.leaves(self.weights)[0].shape[0]

    @property
    def storage(self) -> MemoryState:
        """The weights as a `Storage`, through which rules access them."""
        return MemoryState(self.weights)


def begin(weights: Any, options: WriteOptions) -> GatedState:
    """Returns the state at the start of sequences, from phi_0 with leaves `[B, ...]`."""
    surprise = jax.tree.map(jnp.zeros_like, weights) if options.momentum else None
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers with floats
        optimizer = None if options.optimizer is None else jax.vmap(options.optimizer.init)(weights)
    return GatedState(weights, surprise, optimizer)


def descend(
    state: GatedState,
    changes: Any,
    rate: Array,
    options: WriteOptions,
    gates: Mapping[str, Array],
    *,
    first: bool,
) -> GatedState:
    """Returns the state after one inner step.

    Args:
      state: the state before the inner step.
      changes: G, already bounded by `max_norm`, leaves `[B, ...]`.
      rate: `[B]`.
      options: the memory's options.
      gates: gates by name, `[B]` each.
      first: whether this is the first inner step of a write; only the first one forgets.
    """
    optimizer = state.optimizer
    if options.optimizer is None:
        updates = jax.tree.map(jnp.negative, changes)
    else:
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer = jax.vmap(options.optimizer.update)(changes, optimizer, state.weights)
    added = jax.tree.map(lambda u, w: gated(rate, u).astype(w.dtype), updates, state.weights)
    if options.momentum:
        added = jax.tree.map(lambda s, a: gated(gates["momentum"], s) + a, state.surprise, added)
    weights = state.weights
    if options.forget and first:
        weights = jax.tree.map(lambda w: gated(1 - gates["forget"].astype(w.dtype), w), weights)
    weights = jax.tree.map(jnp.add, weights, added)
    return GatedState(weights, added if options.momentum else None, optimizer)


def distance(a: GatedState, b: GatedState) -> Array:
    """Returns |phi_a - phi_b| `[B]`."""
    return norm(jax.tree.map(jnp.subtract, a.weights, b.weights))
