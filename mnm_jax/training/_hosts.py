"""Several processes in one run, each with devices of its own: who writes, what all agree on, and what lies where.

With one process, as on a machine of one's own, everything here is the plain thing. Collective: all processes call it,
in the same order.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

T = TypeVar("T")


def is_first() -> bool:
    """Whether this process writes what there is one of: metrics, checkpoints, figures."""
    return jax.process_index() == 0


def agree(*said: bool) -> tuple[bool, ...]:
    """Each is True if any process says so; collective."""
    if jax.process_count() == 1:
        return said
    return tuple(multihost_utils.process_allgather(np.array(said)).any(axis=0).tolist())


def wait(reason: str) -> None:
    """Returns when all processes have come here; collective."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)


def in_turn(function: Callable[[], T]) -> T:
    """What `function` returns here, called after the first process is through with its call; collective.

    For files that the first process may mend before others look at them.
    """
    if not is_first():
        wait("the first is through")
        return function()
    try:
        return function()
    finally:  # the others will meet the same error
        wait("the first is through")


def put(tree: Any, shardings: Any) -> Any:
    """A tree that every process holds whole, as arrays that lie as told; shardings: a tree, or one for all leaves."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_put_leaf, tree, shardings)


def _put_leaf(leaf: Any, sharding: Sharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put_leaf(jax.random.key_data(leaf), sharding))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def join(tree: Any, sharding: Sharding) -> Any:
    """A tree of which every process holds its own part, leaves `[T, B / processes, ...]`, as one of whole batches."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def to_host(leaf: Any) -> np.ndarray:
    """The whole of an array, wherever its parts lie; collective for one that is divided over processes."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def part() -> tuple[int, int]:
    """(which of them this process is, how many there are)."""
    return jax.process_index(), jax.process_count()
