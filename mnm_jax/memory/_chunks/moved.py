"""The weights before or after each token of a chunk, as sums of the weights at its beginning and its writes.

Shape letters: `B` examples, `H` memories per example, `N` = B H, `C` tokens of a chunk, `I`/`O` inputs and outputs of a
layer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax._precision import wide
from mnm_jax.memory._chunks.mixture import Gates, Mixture
from mnm_jax.memory._norms import gated
from mnm_jax.memory._rules import Pairs
from mnm_jax.memory._storage.products import times
from mnm_jax.memory._types import Pair

Array = jax.Array


class Moving(NamedTuple):
    """Weights and running writes between two tokens.

    Attributes:
      weights: W, one `[B, H, I, O]` per layer.
      surprise: the running write S, one `[B, H, I, O]` per layer; empty without momentum.
    """

    weights: tuple[Array, ...]
    surprise: tuple[Array, ...]


class Moved(NamedTuple):
    """Weights before or after each token of a chunk, or weights before a single token.

    Attributes:
      moving: W and S at the chunk's beginning, leaves `[N, I, O]`.
      mixture: the coefficients; None for the weights W before a single token.
      initial: phi_0, `[N, I, O]` per layer; empty without resets.
    """

    moving: Moving
    mixture: Mixture | None = None
    initial: tuple[Array, ...] = ()

    def product(self, layer: int, x: Array) -> Array:
        """Returns x_t (G_t W + P_t S + R_t phi_0), without the chunk's writes: `[N, C, I] -> [N, C, O]`."""
        mixed, mixture = times(x, self.moving.weights[layer]), self.mixture
        if mixture is None:
            return mixed
        mixed = gated(mixture.of_start, mixed)
        if mixture.surprise is not None:
            mixed = mixed + gated(mixture.surprise.of_start, times(x, self.moving.surprise[layer]))
        if mixture.of_initial is not None:
            mixed = mixed + gated(mixture.of_initial, times(x, self.initial[layer]))
        return mixed

    def coupling(self, x: Array, scale: Array, rate: Array) -> Array | None:
        """Returns the effect of each token's error on the answers to `x`, `[N, C, C]`; None before a single token."""
        if self.mixture is None:
            return None
        x = wide(x)
        return self.mixture.of_writes * (x @ jnp.swapaxes(x, 1, 2)) * (rate * wide(scale)[..., 0])[:, None]

    def answers(self, layer: int, x: Array, scale: Array, rate: Array, error: Array) -> Array:
        """Returns x_t W_t with the chunk's writes, which have inputs x and errors `[N, C, O]`, in at least float32."""
        coupling = self.coupling(x, scale, rate)
        assert coupling is not None  # only after a write
        return wide(self.product(layer, x)) - coupling @ error

    def end(self, pairs: Pairs, rate: Array) -> Moving:
        """Returns W and S after the tokens of the chunk, given their pairs and rates `[N, C]`."""
        assert self.mixture is not None  # only a chunk has an end
        mixture, shares, weights, surprise = self.mixture, self.mixture.surprise, [], []
        for layer, w in enumerate(self.moving.weights):
            end = gated(mixture.of_start[:, -1], w) - _sum(pairs[layer], mixture.of_writes[:, -1] * rate, w)
            if shares is not None:
                s = self.moving.surprise[layer]
                end, kept = end + gated(shares.of_start[:, -1], s), gated(shares.end_of_start, s)
                surprise.append(kept - _sum(pairs[layer], shares.end_of_writes * rate, s))
            if mixture.of_initial is not None:
                end = end + gated(mixture.of_initial[:, -1], self.initial[layer])
            weights.append(end)
        return Moving(tuple(weights), tuple(surprise))


def advance(moving: Moving, pairs: Pairs, gates: Gates) -> Moving:
    """Returns weights `[B, H, I, O]` after one token with gates `[B, H]`."""
    weights, surprise = [], []
    for layer, w in enumerate(moving.weights):
        added = -_sum(pairs[layer], gates.rate[..., None], w)
        if moving.surprise:
            added = gated(gates.momentum, moving.surprise[layer]) + added
            surprise.append(added)
        weights.append(gated(gates.decay, w) + gated(gates.mask, added))
    return Moving(tuple(weights), tuple(surprise))


def _sum(pair: Pair, factor: Array, like: Array) -> Array:
    """Returns sum_t factor_t x_t (x) delta_t in the dtype of `like`, for factors `[..., C]`."""
    return (jnp.swapaxes(gated(factor, pair.inputs), -2, -1) @ pair.delta).astype(like.dtype)
