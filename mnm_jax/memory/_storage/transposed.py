"""A storage of W that keeps W^T.

Nearly all products of the backward pass are with W^T, and on a CPU `c W^T` takes twice as long as `x W`. Without this
storage, value and gradient take 1.07 to 1.22 times as long for one head and 1.01 to 1.11 times for four heads (form
"reversible", batch 64, width 128, 3 layers, 32 and 128 steps, both rules, two CPU cores; table in
`docs/derivation.md`).
"""

from typing import NamedTuple

import jax

from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._storage.factored import FactoredState
from mnm_jax.memory._storage.products import shared_times
from mnm_jax.memory._types import Pair

Array = jax.Array


class TransposedState(NamedTuple):
    """A `Storage` of W that keeps W^T.

    Attributes:
      kept: the storage of W^T.
    """

    kept: MemoryState | FactoredState

    @classmethod
    def of(cls, storage: MemoryState | FactoredState) -> "TransposedState":
        """Returns the same weights, kept as W^T."""
        return cls(storage.transpose())

    @property
    def batch_size(self) -> int:
        """`B`."""
        return self.kept.batch_size

    def product(self, layer: int, x: Array) -> Array:
        """See `Storage`."""
        return self.kept.product_transposed(layer, x)

    def product_transposed(self, layer: int, c: Array) -> Array:
        """See `Storage`."""
        return self.kept.product(layer, c)

    def subtract(self, pairs: tuple[Pair, ...]) -> "TransposedState":
        """See `Storage`."""
        return TransposedState(self.kept.subtract(_swap(pairs)))

    def slow_product(self, x: Array, kernel: Array) -> Array:
        """See `Storage`."""
        return shared_times(x, kernel)

    def pop(self, first: Array | None, was_reset: Array | None) -> tuple["TransposedState", tuple[Pair, ...]]:
        """See `FactoredState.pop`."""
        assert isinstance(self.kept, FactoredState)
        kept, pairs = self.kept.pop(first, was_reset)
        return TransposedState(kept), _swap(pairs)


def _swap(pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    return tuple(Pair(p.delta, p.inputs) for p in pairs)
