"""Dense storage: every example carries its own weight matrices. The simplest form, and the reference."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax.memory.products import minus_outer, shared_times, times, times_transposed
from mnm_jax.memory.types import Pair

Array = jax.Array


class MemoryState(NamedTuple):
    """Fast weights phi_t of every example, one `[B, I, O]` a layer. A `Storage`."""

    weights: tuple[Array, ...]

    @property
    def batch_size(self) -> int:
        return self.weights[0].shape[0]

    def product(self, layer: int, x: Array) -> Array:
        return times(x, self.weights[layer])

    def pull_back(self, layer: int, c: Array) -> Array:
        return times_transposed(c, self.weights[layer])

    def subtract(self, pairs: tuple[Pair, ...]) -> "MemoryState":
        return MemoryState(tuple(minus_outer(w, *pair) for w, pair in zip(self.weights, pairs, strict=True)))

    def slow_product(self, x: Array, kernel: Array) -> Array:
        return shared_times(x, kernel)


class Transposed(NamedTuple):
    """The same weights kept as W^T, `[B, O, I]` a layer: for those who ask mostly for c W^T, which is then the fast
    one. A `Storage`."""

    turned: MemoryState

    @classmethod
    def of(cls, state: MemoryState) -> "Transposed":
        return cls(MemoryState(tuple(jnp.swapaxes(w, 1, 2) for w in state.weights)))

    @property
    def batch_size(self) -> int:
        return self.turned.batch_size

    def product(self, layer: int, x: Array) -> Array:
        return self.turned.pull_back(layer, x)

    def pull_back(self, layer: int, c: Array) -> Array:
        return self.turned.product(layer, c)

    def subtract(self, pairs: tuple[Pair, ...]) -> "Transposed":
        return Transposed(self.turned.subtract(tuple(Pair(p.delta, p.inputs) for p in pairs)))

    def slow_product(self, x: Array, kernel: Array) -> Array:
        return shared_times(x, kernel)


def start(weights: tuple[Array, ...], batch_size: int) -> MemoryState:
    """phi_0 for each of `batch_size` examples."""
    return MemoryState(tuple(jnp.broadcast_to(w, (batch_size, *w.shape)) for w in weights))
