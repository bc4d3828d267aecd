"""Confines NaN and infinity to their own sequence when one chunk holds several sequences.

The products of a chunk multiply what a token does not depend on by zero, and zero times NaN is NaN. Finite numbers
therefore take the place of memories and tokens that are not finite, and the results of all tokens that depend on these
become NaN: a token that is not finite, and a memory that is not finite at the chunk's beginning, reach up to the next
reset. An overflow within the chunk is not contained, since it is known only after the products.

Shape letters: `B` examples, `H` memories per example, `C` tokens of a chunk, `K` key features, `V` value features,
`I`/`O` inputs and outputs of a layer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax.memory._chunks.mixture import Mixture, Tokens
from mnm_jax.memory._chunks.moved import Moving

Array = jax.Array


class Lost(NamedTuple):
    """The tokens whose results are not finite, `[B, H, C]` bool.

    Attributes:
      weights: whether the weights after the token are lost.
      reads: whether the answer to its query is lost.
    """

    weights: Array
    reads: Array

    def answers(self, answers: tuple[Array, ...]) -> tuple[Array, ...]:
        """Returns the answers to queries and, if given, to write keys, `[B, H, C, V]`, NaN where lost."""
        places = self.reads, self.weights
        return tuple(_put(place, jnp.nan, x) for place, x in zip(places, answers, strict=False))

    def end(self, moving: Moving) -> Moving:
        """Returns W and S after the chunk, leaves `[B, H, I, O]`, NaN where lost."""
        return jax.tree.map(lambda x: _put(self.weights[..., -1], jnp.nan, x), moving)


def isolate(
    moving: Moving, tokens: Tokens, mixture: Mixture, initial: tuple[Array, ...]
) -> tuple[Moving, Tokens, Mixture, Lost]:
    """Replaces NaN and infinity, so that they affect no token after a reset, and returns which results are lost.

    Args:
      moving: W and S at the chunk's beginning, leaves `[B, H, I, O]`.
      tokens: fields `[B, H, C, ...]`.
      mixture: the coefficients of the chunk, leaves `[B, H, ...]`, with resets.
      initial: phi_0, `[B, H, I, O]` per layer.
    """
    reset, gates = mixture.reset, tokens.gates
    assert reset is not None  # otherwise there is nothing to keep apart
    whole = jnp.stack([jnp.all(jnp.isfinite(x), (-2, -1)) for x in jax.tree.leaves(moving)])
    begun = jnp.any(reset, -1) & ~jnp.all(whole, 0)
    # A reset at the first token leaves no share to the memory; a rule that reads it alone, as for chunks of one token
    # the gradient rule does, finds the initial weights.
    unused = reset[..., 0] | begun
    moving = Moving(
        tuple(_put(unused, first, w) for first, w in zip(initial, moving.weights, strict=True)),
        tuple(_put(unused, 0, s) for s in moving.surprise),
    )
    rows = tokens.keys, tokens.values
    written = jnp.isfinite(gates.rate + gates.decay + gates.momentum)
    for row in rows:
        written = written & jnp.all(jnp.isfinite(row), -1)
    read = jnp.all(jnp.isfinite(tokens.queries), -1)
    # Padding is not written, and its vectors are arbitrary.
    faults = (~written & (gates.mask > 0)).astype(jnp.int32)
    count = jnp.cumsum(faults, -1, dtype=jnp.int32) + begun[..., None].astype(jnp.int32)
    lost = count > jax.lax.cummax(jnp.where(reset, count - faults, 0), reset.ndim - 1)
    keys, values = (_put(~written, 0, row) for row in rows)
    tokens = Tokens(
        keys=keys,
        values=values,
        queries=_put(~read, 0, tokens.queries),
        gates=gates._replace(rate=_put(~written, 0, gates.rate)),
    )
    return moving, tokens, _without(mixture, lost), Lost(weights=lost, reads=lost | ~read)


def _without(mixture: Mixture, lost: Array) -> Mixture:
    """Returns coefficients that are zero for the weights after lost tokens `[B, H, C]`, whose gates may be NaN."""
    shares = mixture.of_start, mixture.of_writes, mixture.of_initial
    of_start, of_writes, of_initial = jax.tree.map(lambda x: _put(lost, 0, x), shares)
    surprise = mixture.surprise
    if surprise is not None:
        surprise = surprise._replace(
            of_start=_put(lost, 0, surprise.of_start),
            end_of_start=_put(lost[..., -1], 0, surprise.end_of_start),
            end_of_writes=_put(lost[..., -1], 0, surprise.end_of_writes),
        )
    return mixture._replace(of_start=of_start, of_writes=of_writes, of_initial=of_initial, surprise=surprise)


def _put(condition: Array, value: Array | float, x: Array) -> Array:
    """Returns `x [..., X]` with `value` where a condition `[...]` holds; only the other entries get a gradient."""
    return jnp.where(jnp.expand_dims(condition, range(condition.ndim, x.ndim)), value, x)
