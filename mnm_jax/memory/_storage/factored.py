"""Factored storage: the pairs of all writes are kept, and the weights are never formed.

    x W_t = x W_0 - sum_{s <= t} (x X_s^T) D_s

with the pairs (X_s `[H, I]`, D_s `[H, O]`) of all writes so far. W_0 may be shared by the batch, so that its product
is one large matrix product instead of B small ones. For few pairs, factors are faster than dense weights, and smaller:
`t H (I + O)` numbers per example and layer instead of `I O`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax._precision import wide_dtype
from mnm_jax.memory._storage.products import shared_times
from mnm_jax.memory._types import Pair

Array = jax.Array


class FactoredState(NamedTuple):
    """W_0 and the pairs written since. A `Storage`.

    Attributes:
      shared: W_0 of the whole batch, `[I, O]` per layer; or None.
      own: W_0 of every example, `[B, I, O]` per layer; or None. Without both, W_0 is zero. With both, an example uses
        its own W_0 until its first reset, and then the shared one.
      pairs: buffers of C writes, `[B, C, H, I]` and `[B, C, H, O]` per layer.
      count: scalar, the number of writes held; the buffers are filled from the front.
      first: `[B]`, the index of the first write after the example's last reset; None: no resets.
      was_reset: `[B]` bool, the examples that have left `own` for `shared` at a reset; None: no example.
    """

    shared: tuple[Array, ...] | None
    own: tuple[Array, ...] | None
    pairs: tuple[Pair, ...]
    count: Array  # type: ignore[assignment]  # hides tuple.count
    first: Array | None = None
    was_reset: Array | None = None

    @property
    def batch_size(self) -> int:
        """`B`."""
        return self.pairs[0].inputs.shape[0]

    def product(self, layer: int, x: Array) -> Array:
        """See `Storage`."""
        inputs, delta = self.pairs[layer]
        return self._apply(layer, x, inputs, delta, transposed=False)

    def product_transposed(self, layer: int, c: Array) -> Array:
        """See `Storage`."""
        inputs, delta = self.pairs[layer]
        return self._apply(layer, c, delta, inputs, transposed=True)

    def subtract(self, pairs: tuple[Pair, ...]) -> "FactoredState":
        """Returns the storage with the pairs of one more write. The caller ensures that the buffers are not full."""

        def put(buffer: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(buffer, new[:, None], self.count, axis=1)

        return self._replace(pairs=jax.tree.map(put, self.pairs, pairs), count=self.count + 1)

    def slow_product(self, x: Array, kernel: Array) -> Array:
        """See `Storage`."""
        return shared_times(x, kernel)

    def reset(self, flags: Array) -> "FactoredState":
        """Returns the storage with W_t = `shared`, zero without W_0, for the flagged examples `[B]`; needs `first`."""
        assert self.first is not None  # `reset` is only called with buffers that record it
        was_reset = None if self.was_reset is None else self.was_reset | flags
        return self._replace(first=jnp.where(flags, self.count, self.first), was_reset=was_reset)

    def pop(self, first: Array | None, was_reset: Array | None) -> tuple["FactoredState", tuple[Pair, ...]]:
        """Returns the storage before the last write, with the resets given, and the pairs of the write."""
        last = self.count - 1

        def take(buffer: Array) -> Array:
            return jax.lax.dynamic_index_in_dim(buffer, last, axis=1, keepdims=False)

        return self._replace(count=last, first=first, was_reset=was_reset), jax.tree.map(take, self.pairs)

    def transpose(self) -> "FactoredState":
        """Returns the storage of W^T."""
        return self._replace(
            shared=None if self.shared is None else tuple(w.T for w in self.shared),
            own=None if self.own is None else tuple(jnp.swapaxes(w, 1, 2) for w in self.own),
            pairs=tuple(Pair(p.delta, p.inputs) for p in self.pairs),
        )

    def fold(self) -> tuple[Array, ...]:
        """Returns W_t of every example as dense weights, `[B, I, O]` per layer."""
        valid, dtype = self._valid(), self._dtype()
        folded = []
        for layer, (inputs, delta) in enumerate(self.pairs):
            rows = _rows(inputs * valid[..., None, None])
            written = jnp.einsum("bri,bro->bio", rows, _rows(delta), preferred_element_type=dtype)
            shared = None if self.shared is None else self.shared[layer][None]
            base = self._of_start(shared, None if self.own is None else self.own[layer])
            folded.append(-written if base is None else base - written)
        return tuple(folded)

    def sum_of_pairs(self) -> tuple[Array, ...]:
        """Returns minus the sum of all pairs in the buffers over writes and examples, `[I, O]` per layer.

        Resets are ignored. The result is the cotangent of a shared W_0, to which every episode of every example
        contributes, in one large product per layer.
        """
        return tuple(
            -jnp.einsum("bchi,bcho->io", inputs, delta, preferred_element_type=self._dtype())
            for inputs, delta in self.pairs
        )

    def _dtype(self) -> jnp.dtype:
        """Returns the dtype of the dense weights; without dense weights, that of the buffers, but at least float32."""
        weights = self.shared or self.own
        if weights:
            return weights[0].dtype
        return wide_dtype(self.pairs[0].inputs.dtype)

    def _valid(self) -> Array:
        """Returns 1 for the writes since the last reset, else 0, `[B or 1, C]`, in the dtype of the buffers."""
        write = jnp.arange(self.pairs[0].inputs.shape[1], dtype=jnp.int32)[None]
        valid = write < self.count
        if self.first is not None:
            valid = valid & (write >= self.first[:, None])
        return valid.astype(self.pairs[0].inputs.dtype)

    def _apply(self, layer: int, x: Array, left: Array, right: Array, *, transposed: bool) -> Array:
        """Returns x W_0 - (x left^T) right, with W_0^T if transposed."""
        scores = jnp.einsum("bqi,bri->bqr", x, _rows(left))
        valid = jnp.repeat(self._valid(), left.shape[2], axis=1, total_repeat_length=left.shape[1] * left.shape[2])
        written = jnp.einsum("bqr,bro->bqo", scores * valid[:, None], _rows(right))
        base = self._base(layer, x, transposed)
        return -written if base is None else base - written

    def _base(self, layer: int, x: Array, transposed: bool) -> Array | None:
        """Returns x W_0, or x W_0^T if transposed; None if W_0 is zero."""
        shared = own = None
        if self.shared is not None:
            shared = jnp.einsum("bqo,io->bqi" if transposed else "bqi,io->bqo", x, self.shared[layer].astype(x.dtype))
        if self.own is not None:
            own = jnp.einsum("bqo,bio->bqi" if transposed else "bqi,bio->bqo", x, self.own[layer].astype(x.dtype))
        return self._of_start(shared, own)

    def _of_start(self, shared: Array | None, own: Array | None) -> Array | None:
        """Returns, of two results of the shared W_0 and of its own, that of each example's W_0; None: W_0 is zero."""
        if shared is None or own is None:
            return shared if own is None else own
        return own if self.was_reset is None else jnp.where(self.was_reset[:, None, None], shared, own)


def empty_pairs(
    shapes: tuple[tuple[int, int, int], ...], batch_size: int, writes: int, dtype: jnp.dtype
) -> tuple[Pair, ...]:
    """Returns buffers for `writes` writes of `(H, I, O)` per layer."""

    def zeros(*shape: int) -> Array:
        return jnp.zeros((batch_size, writes, *shape), dtype)

    return tuple(Pair(zeros(heads, fan_in), zeros(heads, fan_out)) for heads, fan_in, fan_out in shapes)


def _rows(buffer: Array) -> Array:
    """Returns `[B, C, H, F]` as `[B, C H, F]`."""
    batch_size, writes, heads, features = buffer.shape
    return buffer.reshape(batch_size, writes * heads, features)
