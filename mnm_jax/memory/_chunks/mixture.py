"""The coefficients of a chunk: the shares of the first weights and of each write in the weights after each token.

With a forget gate and momentum as in Titans (Behrouz et al., 2025, equations 13 and 14; g_t = 1 - alpha_t), token t
with the change D_t at rate one writes

    S_t = m_t S_{t-1} + r_t D_t,    W_t = g_t W_{t-1} + S_t    (without S_t for padding)

Over a chunk that begins with W_0 and S_0, W_t is linear in W_0, S_0 and the writes, with coefficients that depend only
on the gates:

    W_t = G_t W_0 + P_t S_0 + sum_{s <= t} A_ts r_s D_s

Shape letters: `B` examples, `C` tokens of a chunk.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax._vary import vary_alike

Array = jax.Array


class Gates(NamedTuple):
    """The gates of tokens, `[...]` each.

    Attributes:
      rate: write rate r.
      decay: g = 1 - alpha; 1 for no forgetting.
      momentum: m; 0 without momentum.
      mask: 1, or 0 for padding, which changes nothing.
    """

    rate: Array
    decay: Array
    momentum: Array
    mask: Array

    def masked(self) -> "Gates":
        """Returns gates with which padding leaves weights and momentum as they are."""
        counts = self.mask > 0
        rate, decay, momentum = (jnp.where(counts, gate, off) for gate, off in zip(self[:3], (0, 1, 1), strict=True))
        return Gates(rate=rate, decay=decay, momentum=momentum, mask=self.mask)


class SurpriseShares(NamedTuple):
    """The coefficients that momentum adds.

    Attributes:
      of_start: P, the share of S_0 in W_t, `[B, C]`.
      end_of_start: the share of S_0 in S at the chunk's end, `[B]`.
      end_of_writes: the share of each write in S at the chunk's end, `[B, C]`.
    """

    of_start: Array
    end_of_start: Array
    end_of_writes: Array


class Mixture(NamedTuple):
    """The coefficients of a chunk.

    Attributes:
      of_start: G, the share of W_0 in W_t, `[B, C]`.
      of_writes: A, the share of write s in W_t, `[B, C, C]`.
      surprise: the coefficients that momentum adds; None without momentum.
    """

    of_start: Array
    of_writes: Array
    surprise: SurpriseShares | None

    def before(self) -> "Mixture":
        """Returns the coefficients of the weights before each token's write: W_0 alone for the first token."""
        first = jnp.ones_like(self.of_start[:, :1])
        surprise = self.surprise
        if surprise is not None:
            surprise = surprise._replace(of_start=jnp.concatenate([0 * first, surprise.of_start[:, :-1]], 1))
        return Mixture(
            of_start=jnp.concatenate([first, self.of_start[:, :-1]], 1),
            of_writes=jnp.concatenate([jnp.zeros_like(self.of_writes[:, :1]), self.of_writes[:, :-1]], 1),
            surprise=surprise,
        )


def wide(x: Array) -> Array:
    """Returns an array in at least single precision, as products of many decays close to 1 need it."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def mix(gates: Gates, *, momentum: bool) -> Mixture:
    """Returns the coefficients of a chunk.

    Args:
      gates: `[B, C]` each.
      momentum: whether the memory has momentum.
    """
    batch, size = gates.decay.shape
    zero, one = jnp.zeros((batch,), gates.decay.dtype), jnp.ones((batch,), gates.decay.dtype)
    none = jnp.zeros((batch, size), gates.decay.dtype)
    here = jnp.broadcast_to(jnp.eye(size, dtype=gates.decay.dtype)[:, None], (size, batch, size))

    def plain(carry: tuple, now: tuple) -> tuple[tuple, tuple]:
        weights, writes = carry
        g, counts, here = now
        carry = g * weights, g[:, None] * writes + counts[:, None] * here
        return carry, carry

    def with_momentum(carry: tuple, now: tuple) -> tuple[tuple, tuple]:
        weights, surprise, writes, kept, kept_writes = carry
        g, m, counts, here = now
        kept, kept_writes = m * kept, m[:, None] * kept_writes + here
        weights, surprise = g * weights, g * surprise + counts * kept
        writes = g[:, None] * writes + counts[:, None] * kept_writes
        return (weights, surprise, writes, kept, kept_writes), (weights, surprise, writes)

    if not momentum:
        _, (weights, writes) = jax.lax.scan(plain, *vary_alike(((one, none), (gates.decay.T, gates.mask.T, here))))
        return Mixture(of_start=jnp.moveaxis(weights, 0, 1), of_writes=jnp.moveaxis(writes, 0, 1), surprise=None)
    xs = (gates.decay.T, gates.momentum.T, gates.mask.T, here)
    start, xs = vary_alike(((one, zero, none, one, none), xs))
    (*_, kept, kept_writes), (weights, surprise, writes) = jax.lax.scan(with_momentum, start, xs)
    shares = SurpriseShares(of_start=jnp.moveaxis(surprise, 0, 1), end_of_start=kept, end_of_writes=kept_writes)
    return Mixture(of_start=jnp.moveaxis(weights, 0, 1), of_writes=jnp.moveaxis(writes, 0, 1), surprise=shares)
