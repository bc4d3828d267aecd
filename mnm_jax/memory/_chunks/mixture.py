"""The coefficients of a chunk: the shares of the first weights and of each write in the weights after each token.

With a forget gate and momentum as in Titans (Behrouz et al., 2025, equations 13 and 14; g_t = 1 - alpha_t), token t
with the change D_t at rate one writes

    S_t = m_t S_{t-1} + beta_t D_t,    W_t = g_t W_{t-1} + S_t    (without S_t for padding)

Over a chunk that begins with W_0 and S_0, W_t is linear in W_0, S_0 and the writes, with coefficients that depend only
on the gates:

    W_t = G_t W_0 + P_t S_0 + R_t phi_0 + sum_{s <= t} A_ts beta_s D_s

R_t, the share of the initial weights phi_0, is zero until a new sequence begins within the chunk. After this token, the
shares of W_0, S_0 and of all earlier writes are zero.

Shape letters: `B` examples, `C` tokens of a chunk.
"""

from typing import Any, NamedTuple

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
            return shifted if self.reset is None else _where(self.reset, at_reset, shifted)

        surprise = self.surprise
        if surprise is not None:
            surprise = surprise._replace(of_start=shift(surprise.of_start, 0))
        return self._replace(
            of_start=shift(self.of_start, 1),
            of_writes=shift(self.of_writes, 0),
            surprise=surprise,
            of_initial=None if self.of_initial is None else shift(self.of_initial, 0, at_reset=1),
        )


class _Shares(NamedTuple):
    """The shares in W_t and, with momentum, in S_t after one token; see `Mixture` and `SurpriseShares`.

    Attributes:
      of_start: the share of W_0 in W_t, `[B]`.
      of_writes: the share of each write in W_t, `[B, C]`.
      of_surprise: the share of S_0 in W_t, `[B]`.
      kept: the share of S_0 in S_t, `[B]`.
      kept_writes: the share of each write in S_t, `[B, C]`.
    """

    of_start: Any
    of_writes: Any
    of_surprise: Any = None
    kept: Any = None
    kept_writes: Any = None


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

    def plain(shares: _Shares, now: tuple) -> tuple[_Shares, _Shares]:
        g, counts, here = now
        shares = _Shares(of_start=g * shares.of_start, of_writes=g[:, None] * shares.of_writes + counts[:, None] * here)
        return shares, shares

    def with_momentum(shares: _Shares, now: tuple) -> tuple[_Shares, _Shares]:
        g, m, counts, here = now
        kept, kept_writes = m * shares.kept, m[:, None] * shares.kept_writes + here
        weights = _Shares(
            of_start=g * shares.of_start,
            of_writes=g[:, None] * shares.of_writes + counts[:, None] * kept_writes,
            of_surprise=g * shares.of_surprise + counts * kept,
        )
        return weights._replace(kept=kept, kept_writes=kept_writes), weights

    step: Any = with_momentum if momentum else plain

    def resetting(carry: tuple, now: tuple) -> tuple[tuple, tuple]:
        (initial, shares), (reset, gates) = carry, now
        initial = gates[0] * _where(reset, 1, initial)
        shares, outputs = step(jax.tree.map(lambda x: _where(reset, 0, x), shares), gates)
        return (initial, shares), (initial, outputs)

    start: Any = _Shares(of_start=one, of_writes=none)
    if momentum:
        start = start._replace(of_surprise=zero, kept=one, kept_writes=none)
    xs: Any = (gates.decay.T, *(gates.momentum.T,) * momentum, gates.mask.T, here)
    end: Any
    shares: Any
    of_initial: Any = None
    if gates.reset is None:
        start, xs = vary_alike((start, xs))
        end, shares = jax.lax.scan(step, start, xs)
    else:
        start, xs = vary_alike(((zero, start), (gates.reset.T, xs)))
        ends, outputs = jax.lax.scan(resetting, start, xs)
        end, (of_initial, shares) = ends[1], outputs
    shares, of_initial = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), (shares, of_initial))
    surprise = None
    if momentum:
        surprise = SurpriseShares(of_start=shares.of_surprise, end_of_start=end.kept, end_of_writes=end.kept_writes)
    return Mixture(
        of_start=shares.of_start,
        of_writes=shares.of_writes,
        surprise=surprise,
        of_initial=of_initial,
        reset=gates.reset,
    )


def _where(condition: Array, value: int, otherwise: Array) -> Array:
    """Returns `jnp.where` for a condition with fewer trailing axes than the array `otherwise`."""
    return jnp.where(condition.reshape(*condition.shape, *(1,) * (otherwise.ndim - condition.ndim)), value, otherwise)
