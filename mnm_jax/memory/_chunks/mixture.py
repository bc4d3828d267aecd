"""The coefficients of a chunk: the shares of its beginning and of each write in the weights after each token.

With a forget gate and momentum as in Titans (Behrouz et al., 2025, equations 13 and 14; g_t = 1 - alpha_t), token t
with the change D_t at rate one writes

    S_t = m_t S_{t-1} + r_t D_t,    W_t = g_t W_{t-1} + S_t    (without S_t for padding)

Unrolled over a chunk that begins with W_0 and S_0 this is linear in them and in the writes, with coefficients that
depend on the gates alone:

    W_t = G_t W_0 + P_t S_0 + sum_{s <= t} A_ts r_s D_s

Shape letters: `B` examples, `C` tokens of a chunk.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Gates(NamedTuple):
    """How far tokens are written, `[...]` each.

    Attributes:
      rate: write rate r.
      decay: g = 1 - alpha; one forgets nothing.
      momentum: m; zero for none.
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


class Mixture(NamedTuple):
    """The coefficients of a chunk.

    Attributes:
      of_weights: G, the share of W_0 in W_t, `[B, C]`.
      of_surprise: P, the share of S_0 in W_t, `[B, C]`; None without momentum.
      of_writes: A, the share of write s in W_t, `[B, C, C]`.
      kept_surprise: the share of S_0 in S at the chunk's end, `[B]`; None without momentum.
      kept_writes: the share of each write in S at the chunk's end, `[B, C]`; None without momentum.
    """

    of_weights: Array
    of_surprise: Array | None
    of_writes: Array
    kept_surprise: Array | None
    kept_writes: Array | None

    def before(self) -> "Mixture":
        """Returns the coefficients that each token finds: those of the token before it, and W_0 alone for the first."""
        first = jnp.ones_like(self.of_weights[:, :1])
        surprise = self.of_surprise
        return self._replace(
            of_weights=jnp.concatenate([first, self.of_weights[:, :-1]], 1),
            of_surprise=None if surprise is None else jnp.concatenate([0 * first, surprise[:, :-1]], 1),
            of_writes=jnp.concatenate([jnp.zeros_like(self.of_writes[:, :1]), self.of_writes[:, :-1]], 1),
        )


def mix(gates: Gates, *, momentum: bool) -> Mixture:
    """Returns the coefficients of a chunk.

    Args:
      gates: `[B, C]` each.
      momentum: whether there is momentum.
    """
    decay = gates.decay
    batch, size = decay.shape
    zero, one = jnp.zeros((batch,), decay.dtype), jnp.ones((batch,), decay.dtype)
    none = jnp.zeros((batch, size), decay.dtype)
    here = jnp.broadcast_to(jnp.eye(size, dtype=decay.dtype)[:, None], (size, batch, size))
    if not momentum:

        def forget(carry: tuple, now: tuple) -> tuple:
            weights, writes = carry
            g, counts, here = now
            carry = g * weights, g[:, None] * writes + counts[:, None] * here
            return carry, carry

        _, rows = jax.lax.scan(forget, (one, none), (decay.T, gates.mask.T, here))
        weights, writes = (jnp.moveaxis(row, 0, 1) for row in rows)
        return Mixture(
            of_weights=weights, of_surprise=None, of_writes=writes, kept_surprise=None, kept_writes=None
        )

    def step(carry: tuple, now: tuple) -> tuple:
        weights, surprise, writes, kept, kept_writes = carry
        g, m, counts, here = now
        kept, kept_writes = m * kept, m[:, None] * kept_writes + here
        weights, surprise = g * weights, g * surprise + counts * kept
        writes = g[:, None] * writes + counts[:, None] * kept_writes
        return (weights, surprise, writes, kept, kept_writes), (weights, surprise, writes)

    last, rows = jax.lax.scan(step, (one, zero, none, one, none), (decay.T, gates.momentum.T, gates.mask.T, here))
    weights, surprise, writes = (jnp.moveaxis(row, 0, 1) for row in rows)
    return Mixture(
        of_weights=weights, of_surprise=surprise, of_writes=writes, kept_surprise=last[3], kept_writes=last[4]
    )
