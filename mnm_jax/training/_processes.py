"""Runs of several processes, each with its own devices: the writing process, common decisions, placement of arrays.

With a single process no function here communicates. A function marked "collective" must be called by all
processes, in the same order.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from mnm_jax._files import lock_folder

T = TypeVar("T")


def is_first_process() -> bool:
    """Returns True in the process that writes metrics, checkpoints and figures."""
    return jax.process_index() == 0


def any_process(*flags: bool) -> tuple[bool, ...]:
    """Returns for each flag whether it is True in any process; collective."""
    if jax.process_count() == 1:
        return flags
    return tuple(multihost_utils.process_allgather(np.array(flags)).any(axis=0).tolist())


@contextlib.contextmanager
def common_errors() -> Iterator[None]:
    """Raises an OSError of the block, which only one process may meet, in all processes; collective."""
    failure = None
    try:
        yield
    except OSError as error:
        failure = error
    if any_process(failure is not None)[0]:
        raise failure or OSError("another process cannot use the workdir; see its message.")


def wait_for_processes(reason: str) -> None:
    """Returns when all processes have made this call; collective.

    Args:
      reason: a name for this point of the program, the same in all processes.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)


def first_process_first(function: Callable[[], T]) -> T:
    """Returns `function()`, called in the first process before all others; collective.

    It is for files that the first process may repair before the others read them.
    """
    if not is_first_process():
        wait_for_processes("the first process is done")
        return function()
    try:
        return function()
    finally:  # also after an error: the other processes will meet the same one
        wait_for_processes("the first process is done")


@contextlib.contextmanager
def lock_workdir(workdir: str | os.PathLike) -> Iterator[None]:
    """Keeps other processes from training in a run's folder, which is created if missing; collective.

    The system releases the lock when the process ends, also when it is killed. Reading the run needs no lock. Inside
    of the block the same thread may lock the folder again. A warning names a folder whose file system has no locks.

    Args:
      workdir: folder of the run.

    Raises:
      BlockingIOError: if the run is being trained; the message names process and host.
      OSError: if the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with common_errors():
            if is_first_process():
                stack.enter_context(lock_folder(pathlib.Path(workdir)))
        yield


def to_devices(tree: Any, shardings: Any) -> Any:
    """Places a whole tree, equal in every process, on all devices; `shardings` is a tree, or one for all leaves."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_leaf_to_devices, tree, shardings)


def _leaf_to_devices(leaf: Any, sharding: Sharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_leaf_to_devices(jax.random.key_data(leaf), sharding))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def join_batches(tree: Any, sharding: Sharding) -> Any:
    """Joins the processes' parts of a batch, leaves `[T, B / processes, ...]`, into arrays `[T, B, ...]`."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def to_host(leaf: Any) -> np.ndarray:
    """Returns the whole of an array as a NumPy array; collective for an array divided over processes."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)
