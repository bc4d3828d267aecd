"""Memory maps: similarity of the reads from a memory to the writes into it (figure 5 of the paper).

Shape letters: `T` time steps, `H` heads, `K` key features, `V` value features, `F` features of either.
"""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from mnm_jax.cells import MemoryTrace


class MemoryMaps(NamedTuple):
    """Cosine similarities `[T, T]` in [-1, 1]: row t is the read of step t, column s the write of step s.

    Entries whose write is not in the memory at the read are NaN, such as those with s > t.

    Attributes:
      keys: similarity of keys.
      values: similarity of values.
    """

    keys: np.ndarray
    values: np.ndarray


def memory_maps(trace: MemoryTrace, *, read_first: bool = False, kept: ArrayLike | None = None) -> MemoryMaps:
    """Returns the similarity of each step's read to every write that is in the memory then.

        keys[t, s]   = mean over heads h of cos(k^r_{t,h}, k^w_{s,h}),      s <= t
        values[t, s] = mean over heads h of cos(v^r_{t,h}, v^w_{s,h}),      s <= t

    The reads of a head are compared with the writes of the same head, although all heads share one memory. The write
    rate is ignored: a write with rate zero has a column too.

    Args:
      trace: trace of one sequence without its padding: keys `[T, H, K]`, values `[T, H, V]`, of any float dtype.
      read_first: whether a step reads before its write, as in `ChainCell` and `MNMCell(read_first=True)`: s < t.
      kept: `[T]` bool, False = the write is discarded after its step, by `fork` or `fork_memory` of `unroll`: only the
        read of the same step can find it. None: all are kept.

    Returns:
      The maps in float64. Entries with a zero vector, which has no direction, are NaN too.

    Raises:
      TypeError: if `kept` is not of bools.
      ValueError: if an array has another shape.

    Examples:
      The read of the second step uses the key of the first write and returns its value:

      >>> first, second = [[1.0, 0.0]], [[0.0, 1.0]]
      >>> trace = MemoryTrace(
      ...     write_keys=np.array([first, second]),
      ...     write_values=np.array([second, first]),
      ...     read_keys=np.array([first, first]),
      ...     read_values=np.array([second, second]),
      ...     rate=np.ones(2),
      ... )
      >>> memory_maps(trace).keys
      array([[ 1., nan],
             [ 1.,  0.]])
    """
    keys = _similarity("keys", trace.read_keys, trace.write_keys)
    values = _similarity("values", trace.read_values, trace.write_values)
    steps = len(keys)
    stays = np.ones(steps, bool) if kept is None else np.asarray(kept)
    if stays.dtype != bool:
        raise TypeError(f"kept must be bools, True = the write stays in the memory, got {stays.dtype}.")
    if stays.shape != (steps,):
        raise ValueError(f"kept must be [T] = [{steps}], as the trace, got {stays.shape}.")
    found = np.tril(np.ones((steps, steps), bool), -1) & stays
    if not read_first:
        found |= np.eye(steps, dtype=bool)
    return MemoryMaps(keys=np.where(found, keys, np.nan), values=np.where(found, values, np.nan))


def _similarity(name: str, read: ArrayLike, written: ArrayLike) -> np.ndarray:
    """Returns cosine similarities `[T, T]` of two arrays `[T, H, F]`, mean over heads."""
    if np.ndim(read) != 3 or np.shape(read) != np.shape(written):
        raise ValueError(
            f"read and written {name} must both be [T, H, F] of one sequence, got {np.shape(read)} and "
            f"{np.shape(written)}."
        )
    similarity = np.mean(np.einsum("thf,shf->tsh", _directions(read), _directions(written)), axis=-1)
    return np.clip(similarity, -1, 1)


def _directions(array: ArrayLike) -> np.ndarray:
    """Returns unit vectors of float64; NaN where a vector is zero."""
    vectors = np.asarray(array, np.float64)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.full_like(vectors, np.nan), where=norms > 0)
