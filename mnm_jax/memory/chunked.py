"""Writes and reads of a whole chunk of tokens at once, where keys and values do not depend on what is read.

Token t of a chunk writes D_t = - sum_l x_{l,t} (x) delta_{l,t} and then reads, with a forgetting gate and momentum as
in Titans (Behrouz et al., 2025, equations 13 and 14; g_t = 1 - alpha_t):

    S_t = m_t S_{t-1} + r_t D_t,    W_t = g_t W_{t-1} + S_t    (without S_t for padding)

Unrolled over a chunk that begins with W_0 and S_0 this is linear in them and in the writes, with numbers that depend on
the gates alone (`Mixture`):

    W_t = G_t W_0 + P_t S_0 + sum_{s <= t} A_ts r_s D_s

so that all reads of a chunk are products of matrices: y W_t = G_t y W_0 + P_t y S_0 - sum_s A_ts r_s (y . x_s) delta_s.

Inputs and activations of a layer are those at the beginning of the chunk. What is corrected is the answer of the newest
weights, x_t W_{t-1} (the delta rule, by one triangular solve a chunk), for the local rule and for a memory of one
layer; the gradient through several layers takes the answer at the beginning of the chunk, as Titans does. A chunk of
one token is the plain sequence of writes; a memory of one layer gives the same for any chunk.

Shape letters: `B` examples (times heads), `C` tokens of a chunk, `N` chunks, `K` key features, `V` value features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax.memory.dense import MemoryState
from mnm_jax.memory.network import Network, forward, pull_back
from mnm_jax.memory.products import shared_times
from mnm_jax.memory.triangular import solve_unit_lower
from mnm_jax.memory.types import MemoryParams

Array = jax.Array


class Tokens(NamedTuple):
    """What tokens ask of a memory. keys, queries: `[..., K]`; values: `[..., V]`; rate, keep, momentum, real: `[...]`.

    keep: 1 - alpha, one forgets nothing. momentum: zero for none. real: 1, or 0 for padding, which changes nothing.
    """

    keys: Array
    values: Array
    queries: Array
    rate: Array
    keep: Array
    momentum: Array
    real: Array

    def masked(self) -> "Tokens":
        """The same, gates of padding such that it leaves weights and surprise as they are."""
        real = self.real > 0
        gates = (jnp.where(real, gate, none) for gate, none in ((self.rate, 0), (self.keep, 1), (self.momentum, 1)))
        return self._replace(**dict(zip(("rate", "keep", "momentum"), gates, strict=True)))


class Fast(NamedTuple):
    """A memory between two tokens. start: weights at the beginning of the chunk; now: the newest; surprise: S."""

    start: tuple[Array, ...]
    now: tuple[Array, ...]
    surprise: tuple[Array, ...]


class Mixture(NamedTuple):
    """What of which is in W_t, G and P `[B, C]` and A `[B, C, C]`, and in S at the end, `[B]` and `[B, C]`."""

    of_weights: Array
    of_surprise: Array
    of_writes: Array
    kept_surprise: Array
    kept_writes: Array


def mix(tokens: Tokens) -> Mixture:
    """The numbers of a chunk from its gates `[B, C]`."""
    keep = tokens.keep
    batch, size = keep.shape
    zero, one = jnp.zeros((batch,), keep.dtype), jnp.ones((batch,), keep.dtype)
    none = jnp.zeros((batch, size), keep.dtype)

    def step(carry, now):
        weights, surprise, writes, kept, kept_writes = carry
        g, m, real, here = now
        kept, kept_writes = m * kept, m[:, None] * kept_writes + here
        weights, surprise = g * weights, g * surprise + real * kept
        writes = g[:, None] * writes + real[:, None] * kept_writes
        return (weights, surprise, writes, kept, kept_writes), (weights, surprise, writes)

    here = jnp.broadcast_to(jnp.eye(size, dtype=keep.dtype)[:, None], (size, batch, size))
    last, rows = jax.lax.scan(step, (one, zero, none, one, none), (keep.T, tokens.momentum.T, tokens.real.T, here))
    weights, surprise, writes = (jnp.moveaxis(row, 0, 1) for row in rows)
    return Mixture(weights, surprise, writes, last[3], last[4])


class Rule(NamedTuple):
    """How tokens write. local: the rule of MNM-p, else the gradient; normalised: by |x|^2, else the plain error."""

    network: Network
    local: bool
    normalised: bool
    epsilon: float

    @property
    def solves(self) -> bool:
        """Whether a token corrects the answer of the newest weights, and not of those at the chunk's beginning."""
        return self.local or self.network.depth == 1


class _Writes(NamedTuple):
    """Of each layer: inputs `[B, C, I]`, and what is subtracted from W's answer, `[B, C, O]`, or the whole delta.

    scale: `[B, C, 1]` what an error is multiplied by. deltas: None where the errors are still to be solved for.
    """

    inputs: tuple[Array, ...]
    wanted: tuple[Array, ...] | None
    scales: tuple[Array, ...]
    deltas: tuple[Array, ...] | None


def _prepare(rule: Rule, params: MemoryParams, start: tuple[Array, ...], keys: Array, values: Array) -> _Writes:
    """All that a write needs of the weights at the beginning of the chunk."""
    storage = MemoryState(start)
    passed = forward(rule.network, storage, keys)
    square = [jnp.sum(x * x, -1, keepdims=True) for x in passed.inputs]
    if rule.solves:
        if rule.local:
            targets = shared_times(values, params.targets.kernel) + params.targets.bias[None, None]
            ends = [sum(rule.network.sizes[1 : layer + 2]) for layer in range(rule.network.depth - 1)]
            # A hidden layer's error is that of its activation, whose derivative the local rule leaves out: the change
            # of x W since the beginning of the chunk counts as that of the activation.
            ahead = [x @ w - z for x, w, z in zip(passed.inputs, start, passed.outputs, strict=True)]
            wanted = tuple(map(jnp.add, jnp.split(targets, ends, axis=-1), ahead))
        else:
            wanted = (values,)
        ones = [jnp.ones_like(size) for size in square]
        scales = [1 / (size + rule.epsilon) for size in square] if rule.normalised else ones
        return _Writes(passed.inputs, wanted, tuple(scales), None)
    error = passed.outputs[-1] - values
    deltas = pull_back(rule.network, storage, passed, error)
    if rule.normalised:
        tiny = float(jnp.finfo(error.dtype).tiny) ** 0.5
        size = jnp.sum(error * error, -1, keepdims=True) + tiny
        gains = [jnp.sum(delta * delta, -1, keepdims=True) / size for delta in deltas[:-1]]
        kernel = square[-1] + sum(gain * inner for gain, inner in zip(gains, square[:-1], strict=True))
        deltas = tuple(delta / (kernel + rule.epsilon) for delta in deltas)
    return _Writes(passed.inputs, None, (), tuple(deltas))


def chunk(rule: Rule, params: MemoryParams, fast: Fast, tokens: Tokens, mixture: Mixture) -> tuple[Fast, Array]:
    """A whole chunk that begins where `fast` is; the answers `[B, C, V]`, each after its token's write.

    The `start` of what comes out is the end of the chunk, where the next one begins.
    """
    writes = _prepare(rule, params, fast.start, tokens.keys, tokens.values)
    before = _shift(mixture)
    deltas = []
    for layer, x in enumerate(writes.inputs):
        if writes.deltas is not None:
            deltas.append(writes.deltas[layer])
            continue
        # E = G' X W_0 + P' X S_0 - T - (A' r s (X X^T)) E, the primed ones of the token before: triangular, with
        # ones on the diagonal, which are not written down.
        scale = writes.scales[layer]
        known = _mixed(x, fast.now[layer], fast.surprise[layer], before) - writes.wanted[layer]
        coupling = before.of_writes * (x @ jnp.swapaxes(x, 1, 2)) * (tokens.rate[..., None] * scale)[:, None, :, 0]
        error = solve_unit_lower(coupling, known)
        deltas.append(scale * error)

    weighted = mixture.of_writes * tokens.rate[:, None]
    z = tokens.queries
    for layer, (x, delta) in enumerate(zip(writes.inputs, deltas, strict=True)):
        y = _with_bias(rule.network, z)
        attention = weighted * (y @ jnp.swapaxes(x, 1, 2))
        z = _mixed(y, fast.now[layer], fast.surprise[layer], mixture) - attention @ delta
        if layer < rule.network.depth - 1:
            z = rule.network.activation(z)

    now, surprise = [], []
    for layer, (x, delta) in enumerate(zip(writes.inputs, deltas, strict=True)):
        old, momentum = fast.now[layer], fast.surprise[layer]
        written, gathered = (
            jnp.swapaxes(x * (part * tokens.rate)[..., None], 1, 2) @ delta
            for part in (mixture.of_writes[:, -1], mixture.kept_writes)
        )
        end = mixture.of_weights[:, -1, None, None] * old + mixture.of_surprise[:, -1, None, None] * momentum
        now.append(end - written)
        surprise.append(mixture.kept_surprise[:, None, None] * momentum - gathered)
    return Fast(tuple(now), tuple(now), tuple(surprise)), z


def step(rule: Rule, params: MemoryParams, fast: Fast, token: Tokens) -> tuple[Fast, Array]:
    """One token, fields `[B, ...]`, as `chunk` takes it, and its answer `[B, V]`; `fast.start` stays as it is."""
    one = Tokens(*(field[:, None] for field in token))
    writes = _prepare(rule, params, fast.start, one.keys, one.values)
    now, surprise = [], []
    for layer, x in enumerate(writes.inputs):
        if writes.deltas is None:
            delta = writes.scales[layer] * (x @ fast.now[layer] - writes.wanted[layer])
        else:
            delta = writes.deltas[layer]
        write = token.rate[:, None, None] * (jnp.swapaxes(x, 1, 2) @ delta)
        surprise.append(token.momentum[:, None, None] * fast.surprise[layer] - write)
        now.append(token.keep[:, None, None] * fast.now[layer] + token.real[:, None, None] * surprise[-1])
    answer = forward(rule.network, MemoryState(tuple(now)), one.queries).outputs[-1][:, 0]
    return Fast(fast.start, tuple(now), tuple(surprise)), answer


def _mixed(x: Array, weights: Array, surprise: Array, mixture: Mixture) -> Array:
    return mixture.of_weights[..., None] * (x @ weights) + mixture.of_surprise[..., None] * (x @ surprise)


def _shift(mixture: Mixture) -> Mixture:
    """What the token before has: W_0 and nothing else for the first."""
    first = jnp.ones_like(mixture.of_weights[:, :1])
    return mixture._replace(
        of_weights=jnp.concatenate([first, mixture.of_weights[:, :-1]], 1),
        of_surprise=jnp.concatenate([0 * first, mixture.of_surprise[:, :-1]], 1),
        of_writes=jnp.concatenate([jnp.zeros_like(mixture.of_writes[:, :1]), mixture.of_writes[:, :-1]], 1),
    )


def _with_bias(network: Network, z: Array) -> Array:
    return jnp.concatenate([z, jnp.ones_like(z[..., :1])], -1) if network.use_bias else z
