"""Dense storage, the reference: every example has its own weight matrices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax.memory._storage.products import minus_outer, shared_times, times, times_transposed
from mnm_jax.memory._types import Pair

Array = jax.Array


class MemoryState(NamedTuple):
    """The fast weights phi_t of every example. A `Storage`.

    Attributes:
      weights: one `[B, I, O]` per layer.
    """

    weights: tuple[Array, ...]

    @property
    def batch_size(self) -> int:
        """`B`."""
        return self.weights[0].shape[0]

    def product(self, layer: int, x: Array) -> Array:
        """See `Storage`."""
        return times(x, self.weights[layer])

    def product_transposed(self, layer: int, c: Array) -> Array:
        """See `Storage`."""
        return times_transposed(c, self.weights[layer])

    def subtract(self, pairs: tuple[Pair, ...]) -> "MemoryState":
        """See `Storage`."""
        return MemoryState(tuple(minus_outer(w, *pair) for w, pair in zip(self.weights, pairs, strict=True)))

    def slow_product(self, x: Array, kernel: Array) -> Array:
        """See `Storage`."""
        return shared_times(x, kernel)

    def transpose(self) -> "MemoryState":
        """Returns the storage of W^T."""
        return MemoryState(tuple(jnp.swapaxes(w, 1, 2) for w in self.weights))


def start(weights: tuple[Array, ...], batch_size: int) -> MemoryState:
    """Returns phi_0 for each of `batch_size` examples."""
    return MemoryState(tuple(jnp.broadcast_to(w, (batch_size, *w.shape)) for w in weights))
