"""Factored storage: weights are never formed; what was written is kept as the factors it came in.

    x W_t = x W_0 - sum_{s <= t} (x X_s^T) D_s

with the pairs (X_s `[H, I]`, D_s `[H, O]`) of all writes so far. W_0 may be shared by the batch, so that its product
is one large matrix product instead of B small ones. Cheaper than dense weights while few pairs are kept, and smaller:
t H (I + O) numbers an example where dense weights take I O.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax.memory._storage.products import shared_times
from mnm_jax.memory._types import Pair

Array = jax.Array


class FactoredState(NamedTuple):
    """W_0 and the pairs written since. A `Storage`.

    shared: W_0 of the whole batch, `[I, O]` a layer, or None. own: W_0 of every example, `[B, I, O]`, or None; with
    neither W_0 is zero. fresh: `[B]` bool, who starts from `shared` where there are both kinds, or from zero where
    there are only `own`; None: nobody.
    pairs: buffers of C writes, `[B, C, H, I]` and `[B, C, H, O]` a layer. count: writes held, those before it are in
    use. first: `[B]`, an example's first write that still counts; None: all do.
    """

    shared: tuple[Array, ...] | None
    own: tuple[Array, ...] | None
    pairs: tuple[Pair, ...]
    count: Array
    first: Array | None = None
    fresh: Array | None = None

    @property
    def batch_size(self) -> int:
        return self.pairs[0].inputs.shape[0]

    def product(self, layer: int, x: Array) -> Array:
        inputs, delta = self.pairs[layer]
        return self._apply(layer, x, inputs, delta, transposed=False)

    def product_transposed(self, layer: int, c: Array) -> Array:
        inputs, delta = self.pairs[layer]
        return self._apply(layer, c, delta, inputs, transposed=True)

    def subtract(self, pairs: tuple[Pair, ...]) -> "FactoredState":
        """Puts the pairs of one write into the buffers. More than C writes are the caller's mistake: see `fold`."""

        def put(buffer: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(buffer, new[:, None], self.count, axis=1)

        return self._replace(pairs=jax.tree.map(put, self.pairs, pairs), count=self.count + 1)

    def slow_product(self, x: Array, kernel: Array) -> Array:
        return shared_times(x, kernel)

    def reset(self, flags: Array) -> "FactoredState":
        """Back to `shared`, or to zero where there is none, for the flagged examples `[B]`; needs `first`."""
        fresh = None if self.fresh is None else self.fresh | flags
        return self._replace(first=jnp.where(flags, self.count, self.first), fresh=fresh)

    def pop(self) -> tuple["FactoredState", tuple[Pair, ...]]:
        """The last write taken out again, and its pairs. The buffers stay as they are: the count moves back."""
        last = self.count - 1

        def take(buffer: Array) -> Array:
            return jax.lax.dynamic_index_in_dim(buffer, last, axis=1, keepdims=False)

        return self._replace(count=last), jax.tree.map(take, self.pairs)

    def since(self, first: Array | None, fresh: Array | None) -> "FactoredState":
        """As it was at a step whose `first` and `fresh` these were."""
        return self._replace(first=first, fresh=fresh)

    def transpose(self) -> "FactoredState":
        """W^T as the weights."""
        return self._replace(
            shared=None if self.shared is None else tuple(w.T for w in self.shared),
            own=None if self.own is None else tuple(jnp.swapaxes(w, 1, 2) for w in self.own),
            pairs=tuple(Pair(p.delta, p.inputs) for p in self.pairs),
        )

    def fold(self) -> tuple[Array, ...]:
        """W_t of every example as dense weights, `[B, I, O]` a layer."""
        valid, dtype = self._valid(), self._dtype()
        folded = []
        for layer, (inputs, delta) in enumerate(self.pairs):
            rows = _rows(inputs * valid[..., None, None])
            written = jnp.einsum("bri,bro->bio", rows, _rows(delta), preferred_element_type=dtype)
            shared = 0 if self.shared is None else self.shared[layer][None]
            if self.fresh is not None:
                base = jnp.where(self.fresh[:, None, None], shared, self.own[layer])
            else:
                base = shared if self.own is None else self.own[layer]
            folded.append(base - written)
        return tuple(folded)

    def total(self) -> tuple[Array, ...]:
        """The own weights minus all pairs in the buffers, summed over examples, whether they still count or not.

        For the cotangent of W_0, to which every example adds in all its episodes: one large product a layer.
        """
        totals = []
        for layer, (inputs, delta) in enumerate(self.pairs):
            written = jnp.einsum("bchi,bcho->io", inputs, delta, preferred_element_type=self._dtype())
            totals.append(-written if self.own is None else jnp.sum(self.own[layer], 0) - written)
        return tuple(totals)

    def _dtype(self) -> jnp.dtype:
        """Of the weights; of the buffers where there are none, or float32 if these are of less."""
        weights = self.shared or self.own
        if weights:
            return weights[0].dtype
        dtype = self.pairs[0].inputs.dtype
        return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32

    def _valid(self) -> Array:
        """`[B or 1, C]`: which of the writes in the buffers count, in the dtype of the buffers."""
        write = jnp.arange(self.pairs[0].inputs.shape[1], dtype=jnp.int32)[None]
        valid = write < self.count
        if self.first is not None:
            valid = valid & (write >= self.first[:, None])
        return valid.astype(self.pairs[0].inputs.dtype)

    def _apply(self, layer: int, x: Array, asked: Array, given: Array, *, transposed: bool) -> Array:
        scores = jnp.einsum("bqi,bri->bqr", x, _rows(asked))
        valid = jnp.repeat(self._valid(), asked.shape[2], axis=1, total_repeat_length=asked.shape[1] * asked.shape[2])
        written = jnp.einsum("bqr,bro->bqo", scores * valid[:, None], _rows(given))
        base = self._base(layer, x, transposed)
        return -written if base is None else base - written

    def _base(self, layer: int, x: Array, transposed: bool) -> Array | None:
        shared = own = None
        if self.shared is not None:
            shared = jnp.einsum("bqo,io->bqi" if transposed else "bqi,io->bqo", x, self.shared[layer].astype(x.dtype))
        if self.own is not None:
            own = jnp.einsum("bqo,bio->bqi" if transposed else "bqi,bio->bqo", x, self.own[layer].astype(x.dtype))
        if self.fresh is None:
            return own if shared is None else shared
        if own is None:
            return shared
        return jnp.where(self.fresh[:, None, None], 0 if shared is None else shared, own)


def empty_pairs(shapes: tuple[tuple[int, int, int], ...], batch_size: int, writes: int, dtype) -> tuple[Pair, ...]:
    """Buffers for `writes` writes of (H, I, O) a layer."""
    zeros = lambda *shape: jnp.zeros((batch_size, writes, *shape), dtype)  # noqa: E731
    return tuple(Pair(zeros(heads, fan_in), zeros(heads, fan_out)) for heads, fan_in, fan_out in shapes)


def _rows(buffer: Array) -> Array:
    """`[B, C, H, F] -> [B, C H, F]`."""
    return buffer.reshape(buffer.shape[0], -1, buffer.shape[3])
