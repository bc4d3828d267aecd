"""Memory maps: what is read from a memory, compared with what was written into it (figure 5 of the paper).

Shape letters: `T` time steps, `H` heads, `K` key features, `V` value features.
"""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from mnm_jax.cells import MemoryTrace


class MemoryMaps(NamedTuple):
    """Cosine similarities `[T, T]` of keys and of values.

    Row t is what was read at step t, column s what was written at step s; NaN where s > t, not written by then.
    """

    keys: np.ndarray
    values: np.ndarray


def memory_maps(trace: MemoryTrace) -> MemoryMaps:
    """Similarity of what is read at each step with what was written at it or before.

        keys[t, s]   = mean over heads h of cos(k^r_{t,h}, k^w_{s,h}),      s <= t
        values[t, s] = mean over heads h of cos(v^r_{t,h}, v^w_{s,h}),      s <= t

    A head is compared with its own writes, though all heads read one memory. The write rate plays no part: a write
    of rate zero has its column too. The step itself (s = t) counts as written, as it is in every cell that does not
    read first.

    Args:
        trace: of one sequence without its padding: keys `[T, H, K]`, values `[T, H, V]`, of any float dtype.

    Returns:
        float64 in [-1, 1]; NaN where s > t, and where a vector is zero and has no direction.

    Raises:
        ValueError: arrays of another shape.

    The key of the second step asks for what the first step wrote, and gets it:

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
    return MemoryMaps(keys, values)


def _similarity(name: str, read: ArrayLike, written: ArrayLike) -> np.ndarray:
    """Cosine similarity `[T, T]` of `[T, H, F]` with `[T, H, F]`, mean over heads, NaN above the diagonal."""
    if np.ndim(read) != 3 or np.shape(read) != np.shape(written):
        raise ValueError(
            f"read and written {name} must both be [T, H, F] of one sequence, got {np.shape(read)} and "
            f"{np.shape(written)}."
        )
    similarity = np.mean(np.einsum("thf,shf->tsh", _directions(read), _directions(written)), axis=-1)
    later = np.triu(np.ones(similarity.shape, bool), 1)
    return np.where(later, np.nan, np.clip(similarity, -1, 1))


def _directions(array: ArrayLike) -> np.ndarray:
    """Returns unit vectors of float64; NaN where a vector is zero."""
    vectors = np.asarray(array, np.float64)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.full_like(vectors, np.nan), where=norms > 0)
