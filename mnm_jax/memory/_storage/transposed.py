"""Any storage with its weights kept as W^T: for those who ask mostly for c W^T, which is then the fast product."""

from typing import NamedTuple

import jax

from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._storage.factored import FactoredState
from mnm_jax.memory._storage.products import shared_times
from mnm_jax.memory._types import Pair

Array = jax.Array


class Transposed(NamedTuple):
    """turned: the storage of W^T. A `Storage` of W."""

    turned: MemoryState | FactoredState

    @classmethod
    def of(cls, storage: MemoryState | FactoredState) -> "Transposed":
        return cls(storage.transpose())

    @property
    def batch_size(self) -> int:
        return self.turned.batch_size

    def product(self, layer: int, x: Array) -> Array:
        return self.turned.product_transposed(layer, x)

    def product_transposed(self, layer: int, c: Array) -> Array:
        return self.turned.product(layer, c)

    def subtract(self, pairs: tuple[Pair, ...]) -> "Transposed":
        return Transposed(self.turned.subtract(_swap(pairs)))

    def slow_product(self, x: Array, kernel: Array) -> Array:
        return shared_times(x, kernel)

    def pop(self) -> tuple["Transposed", tuple[Pair, ...]]:
        """See `FactoredState.pop`."""
        turned, pairs = self.turned.pop()
        return Transposed(turned), _swap(pairs)

    def since(self, first: Array | None, fresh: Array | None) -> "Transposed":
        """See `FactoredState.since`."""
        return Transposed(self.turned.since(first, fresh))


def _swap(pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    return tuple(Pair(p.delta, p.inputs) for p in pairs)
