"""The coefficients of a chunk: the shares of the first weights and of each write in the weights after each token.

With a forget gate and momentum as in Titans (Behrouz et al., 2025, equations 13 and 14; g_t = 1 - alpha_t), token t
with the change D_t at rate one writes

    S_t = m_t S_{t-1} + beta_t D_t,    W_t = g_t W_{t-1} + S_t    (without S_t for padding)

Over a chunk that begins with W_0 and S_0, W_t is linear in W_0, S_0 and the writes, with coefficients that depend only
on the gates:

    W_t = G_t W_0 + P_t S_0 + R_t phi_0 + sum_{s <= t} A_ts beta_s D_s

R_t, the share of the initial weights phi_0, is zero until a new sequence begins within the chunk. After this token, the
shares of W_0, S_0 and of all earlier writes are zero.

Shape letters: `B` examples, `C` tokens of a chunk, `K` key features, `V` value features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax._vary import vary_alike

Array = jax.Array


class Gates(NamedTuple):
    """The gates of tokens, `[...]` each.

    Attributes:
      rate: write rate beta.
      decay: g = 1 - alpha; 1 for no forgetting.
      momentum: m; 0 without momentum.
      mask: 1, or 0 for padding, which changes nothing.
      reset: bool, whether a new sequence begins before this token, padding or not; None without resets.
    """

    rate: Array
    decay: Array
    momentum: Array
    mask: Array
    reset: Array | None = None

    def masked(self) -> "Gates":
        """Returns gates with which padding leaves weights and momentum as they are."""
        counts = self.mask > 0
        rate, decay, momentum = (jnp.where(counts, gate, off) for gate, off in zip(self[:3], (0, 1, 1), strict=True))
        return self._replace(rate=rate, decay=decay, momentum=momentum)


class Tokens(NamedTuple):
    """The writes and reads of tokens.

    Attributes:
      keys: write keys, normalised, `[..., K]`.
      values: write values, `[..., V]`.
      queries: read keys, normalised, `[..., K]`.
      gates: `[...]` each.
    """

    keys: Array
    values: Array
    queries: Array
    gates: Gates


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
      of_initial: R, the share of phi_0 in W_t, `[B, C]`; None without resets.
      reset: whether a new sequence begins before each token, `[B, C]` bool; None without resets.
    """

    of_start: Array
    of_writes: Array
    surprise: SurpriseShares | None
    of_initial: Array | None = None
    reset: Array | None = None

    def before(self) -> "Mixture":
        """Returns the coefficients of the weights before each token's write: W_0 alone for the first token.

        Where a new sequence begins it is phi_0 alone.
        """

        def shift(shares: Array, first: int, at_reset: int = 0) -> Array:
            firsts = jnp.full_like(shares[:, :1], first)
            shifted = jnp.concatenate([firsts, shares[:, :-1]], 1)
            if self.reset is None:
                return shifted
            return jnp.where(jnp.expand_dims(self.reset, range(2, shares.ndim)), at_reset, shifted)

        surprise = self.surprise
        if surprise is not None:
            surprise = surprise._replace(of_start=shift(surprise.of_start, 0))
        return self._replace(
            of_start=shift(self.of_start, 1),
            of_writes=shift(self.of_writes, 0),
            surprise=surprise,
            of_initial=None if self.of_initial is None else shift(self.of_initial, 0, at_reset=1),
        )


def mix(gates: Gates, *, momentum: bool) -> Mixture:
    """Returns the coefficients of a chunk.

    Args:
      gates: `[B, C]` each.
      momentum: whether the memory has momentum.
    """
    batch, size = gates.decay.shape
    # The shares in W_t and in S_t are rows: of W_0, S_0 and phi_0, then of every write.
    old, running, initial, *writes = jnp.eye(3 + size, dtype=gates.decay.dtype)

    def step(shares: tuple[Array, Array], now: tuple) -> tuple[tuple[Array, Array], Array]:
        (w, s), (g, m, counts, reset, here) = shares, now
        if reset is not None:
            w, s = jnp.where(reset[:, None], initial[None], w), jnp.where(reset[:, None], 0, s)
        s = m[:, None] * s + here[None] if momentum else jnp.broadcast_to(here[None], s.shape)
        w = g[:, None] * w + counts[:, None] * s
        return (w, s), w

    start = jnp.broadcast_to(old, (batch, 3 + size)), jnp.broadcast_to(running, (batch, 3 + size))
    by_token = jax.tree.map(jnp.transpose, (gates.decay, gates.momentum, gates.mask, gates.reset))
    start, xs = vary_alike((start, (*by_token, jnp.stack(writes))))
    (_, s), w = jax.lax.scan(step, start, xs)
    w = jnp.moveaxis(w, 0, 1)
    return Mixture(
        of_start=w[..., 0],
        of_writes=w[..., 3:],
        surprise=SurpriseShares(w[..., 1], s[:, 1], s[:, 3:]) if momentum else None,
        of_initial=None if gates.reset is None else w[..., 2],
        reset=gates.reset,
    )
