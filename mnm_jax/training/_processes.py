"""Runs of several processes, each with its own devices: the writing process, common decisions, placement of arrays.

With a single process no function here communicates. A function marked "collective" must be called by all
processes, in the same order.
"""

import contextlib
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from mnm_jax._files import lock_folder
from mnm_jax._params import is_key

T = TypeVar("T")


def is_first_process() -> bool:
    """Returns True in the process that writes metrics, checkpoints and figures."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Returns whether a flag is True in any process; collective."""
    return bool(largest(flag)[0])


def largest(*values: int) -> tuple[int, ...]:
    """Returns for each value the largest one of all processes; collective."""
    if jax.process_count() == 1:
        return values
    return tuple(multihost_utils.process_allgather(np.array(values, np.int32)).max(axis=0).tolist())


@contextlib.contextmanager
def common_errors() -> Iterator[None]:
    """Raises an error in every process if the `with` block fails in any; every process must enter it.

    A process whose own block succeeds raises an OSError with the index and message of the first that failed.

    Raises:
      Exception: the error of the block in this process.
      OSError: if the block fails in other processes only.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if any_process(failure is not None):
        messages = _gather_text("" if failure is None else " ".join(str(failure).split()) or repr(failure))
        index, message = next((index, message) for index, message in enumerate(messages) if message)
        raise failure or OSError(f"process {index} failed: {message}")


def _gather_text(text: str) -> list[str]:
    """Returns the texts of all processes, at most 1,000 bytes of each; collective."""
    if jax.process_count() == 1:
        return [text]
    encoded = np.zeros(1000, np.uint8)
    content = text.encode()[: encoded.size]
    encoded[: len(content)] = np.frombuffer(content, np.uint8)
    rows = multihost_utils.process_allgather(encoded)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]


def first_process_first(function: Callable[[], T]) -> T:
    """Returns `function()`, called in the first process before all others; collective.

    It is for files that the first process writes or repairs before the others read them.

    Raises:
      Exception: the error of the function. If it fails in some processes only, the others raise an OSError with number
        and message of the first of these; if it fails in the first process, the others do not call it.
    """
    for first in (True, False):
        with common_errors():
            if is_first_process() is first:
                result = function()
    return result


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


def check_same_start(step: int, state: Any, position: Any) -> None:
    """Checks that all processes resume from the same checkpoint; collective.

    Args:
      step: number of updates that this process has restored; 0 for a new run.
      state: a tree of host arrays.
      position: the position of the task's loader, in values of JSON.

    Raises:
      ValueError: in all processes, if a process has another number of updates, state or position than the first.
    """
    if jax.process_count() == 1:
        return
    checksum = zlib.crc32(json.dumps(position, sort_keys=True).encode())
    for leaf in jax.tree.leaves(state):
        checksum = zlib.crc32(to_host(leaf).tobytes(), checksum)
    rows = multihost_utils.process_allgather(np.array([step, checksum], np.uint32)).tolist()
    for index, row in enumerate(rows):
        if row != rows[0]:
            found = f"is at update {row[0]}, process 0 at update {rows[0][0]}"
            if row[0] == rows[0][0]:
                found = f"holds another state of update {row[0]} than process 0"
            raise ValueError(f"process {index} {found}: do all processes see the same workdir?")


def to_devices(tree: Any, shardings: Any) -> Any:
    """Places a whole tree, equal in every process, on all devices; `shardings` is a tree, or one for all leaves."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_leaf_to_devices, tree, shardings)


def _leaf_to_devices(leaf: Any, sharding: Sharding) -> jax.Array:
    if is_key(leaf):
        return jax.random.wrap_key_data(_leaf_to_devices(jax.random.key_data(leaf), sharding))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def join_batches(tree: Any, sharding: Sharding) -> Any:
    """Joins the processes' parts of a batch, leaves `[T, B / processes, ...]`, into arrays `[T, B, ...]`."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def to_host(leaf: Any) -> np.ndarray:
    """Returns the whole of an array, or the data of keys, in NumPy; collective for an array divided over processes."""
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)
