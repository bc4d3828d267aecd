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

from mnm_jax.memory._chunks.triangular import solve_unit_lower
from mnm_jax.memory._network import Network, backward, forward
from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._storage.products import shared_times
from mnm_jax.memory._types import MemoryParams

Array = jax.Array


class Gates(NamedTuple):
    """How tokens are written, `[...]` each.

    keep: 1 - alpha, one forgets nothing. momentum: zero for none. real: 1, or 0 for padding, which changes nothing.
    """

    rate: Array
    keep: Array
    momentum: Array
    real: Array

    def masked(self) -> "Gates":
        """The same, those of padding such that it leaves weights and surprise as they are."""
        real = self.real > 0
        rate, keep, momentum = (jnp.where(real, gate, none) for gate, none in zip(self[:3], (0, 1, 1), strict=True))
        return Gates(rate, keep, momentum, self.real)


class Tokens(NamedTuple):
    """What tokens ask of a memory. keys, queries: `[..., K]`; values: `[..., V]`."""

    keys: Array
    values: Array
    queries: Array
    gates: Gates


class Fast(NamedTuple):
    """A memory between two tokens. start: weights at the beginning of the chunk; now: the newest; surprise: S, or
    nothing where there is no momentum."""

    start: tuple[Array, ...]
    now: tuple[Array, ...]
    surprise: tuple[Array, ...]


class Mixture(NamedTuple):
    """What of which is in W_t, G and P `[B, C]` and A `[B, C, C]`, and in S at the end, `[B]` and `[B, C]`; P and the
    last two are None without momentum."""

    of_weights: Array
    of_surprise: Array | None
    of_writes: Array
    kept_surprise: Array | None
    kept_writes: Array | None


def mix(rule: "Rule", gates: Gates) -> Mixture:
    """The numbers of a chunk from its gates `[B, C]`."""
    keep = gates.keep
    batch, size = keep.shape
    zero, one = jnp.zeros((batch,), keep.dtype), jnp.ones((batch,), keep.dtype)
    none = jnp.zeros((batch, size), keep.dtype)
    here = jnp.broadcast_to(jnp.eye(size, dtype=keep.dtype)[:, None], (size, batch, size))
    if not rule.momentum:

        def forget(carry, now):
            weights, writes = carry
            g, real, here = now
            carry = g * weights, g[:, None] * writes + real[:, None] * here
            return carry, carry

        _, rows = jax.lax.scan(forget, (one, none), (keep.T, gates.real.T, here))
        weights, writes = (jnp.moveaxis(row, 0, 1) for row in rows)
        return Mixture(weights, None, writes, None, None)

    def step(carry, now):
        weights, surprise, writes, kept, kept_writes = carry
        g, m, real, here = now
        kept, kept_writes = m * kept, m[:, None] * kept_writes + here
        weights, surprise = g * weights, g * surprise + real * kept
        writes = g[:, None] * writes + real[:, None] * kept_writes
        return (weights, surprise, writes, kept, kept_writes), (weights, surprise, writes)

    last, rows = jax.lax.scan(step, (one, zero, none, one, none), (keep.T, gates.momentum.T, gates.real.T, here))
    weights, surprise, writes = (jnp.moveaxis(row, 0, 1) for row in rows)
    return Mixture(weights, surprise, writes, last[3], last[4])


class Rule(NamedTuple):
    """How tokens write. local: the rule of MNM-p, else the gradient; normalised: by |x|^2, else the plain error."""

    network: Network
    local: bool
    normalised: bool
    epsilon: float
    momentum: bool = True

    @property
    def solves(self) -> bool:
        """Whether a token corrects the answer of the newest weights, and not of those at the chunk's beginning."""
        return self.local or self.network.depth == 1


class _Writes(NamedTuple):
    """Of each layer: inputs `[B, C, I]` and the answers x W to them at the chunk's beginning, `[B, C, O]`.

    wanted: what is subtracted from W's answer, `[B, C, O]`; scales: `[B, C, 1]` what an error is multiplied by; or,
    where nothing is solved for, deltas: what is written, `[B, C, O]`.
    """

    inputs: tuple[Array, ...]
    answers: tuple[Array, ...]
    wanted: tuple[Array, ...] | None
    scales: tuple[Array, ...]
    deltas: tuple[Array, ...] | None


def _prepare(rule: Rule, params: MemoryParams, start: tuple[Array, ...], keys: Array, values: Array) -> _Writes:
    """All that a write needs of the weights at the beginning of the chunk."""
    if rule.solves:
        return _prepare_errors(rule, params, start, keys, values)
    storage = MemoryState(start)
    passed = forward(rule.network, storage, keys)
    error = passed.outputs[-1] - values
    deltas = backward(rule.network, storage, passed, error)
    if rule.normalised:
        square = [jnp.sum(x * x, -1, keepdims=True) for x in passed.inputs]
        tiny = float(jnp.finfo(error.dtype).tiny) ** 0.5
        size = jnp.sum(error * error, -1, keepdims=True) + tiny
        gains = [jnp.sum(delta * delta, -1, keepdims=True) / size for delta in deltas[:-1]]
        kernel = square[-1] + sum(gain * inner for gain, inner in zip(gains, square[:-1], strict=True))
        deltas = tuple(delta / (kernel + rule.epsilon) for delta in deltas)
    return _Writes(passed.inputs, (), None, (), tuple(deltas))


def _prepare_errors(rule: Rule, params: MemoryParams, start: tuple[Array, ...], keys: Array, values: Array) -> _Writes:
    inputs, answers, ahead, z = [], [], [], keys
    for layer, w in enumerate(start):
        inputs.append(_with_bias(rule.network, z))
        answers.append(inputs[-1] @ w)
        z = rule.network.activation(answers[-1]) if layer < rule.network.depth - 1 else answers[-1]
        # A hidden layer's error is that of its activation, whose derivative the local rule leaves out: the change of
        # x W since the beginning of the chunk counts as that of the activation.
        ahead.append(answers[-1] - z)
    wanted: tuple[Array, ...] = (values,)
    if rule.local:
        targets = shared_times(values, params.targets.kernel) + params.targets.bias[None, None]
        ends = [sum(rule.network.sizes[1 : layer + 2]) for layer in range(rule.network.depth - 1)]
        wanted = tuple(map(jnp.add, jnp.split(targets, ends, axis=-1), ahead))
    square = [jnp.sum(x * x, -1, keepdims=True) for x in inputs]
    scales = [1 / (size + rule.epsilon) if rule.normalised else jnp.ones_like(size) for size in square]
    return _Writes(tuple(inputs), tuple(answers), wanted, tuple(scales), None)


def chunk(rule: Rule, params: MemoryParams, fast: Fast, tokens: Tokens, mixture: Mixture) -> tuple[Fast, Array]:
    """A whole chunk that begins where `fast` is, `start` being `now`; the answers `[B, C, V]`, each after its write.

    The `start` of what comes out is the end of the chunk, where the next one begins.
    """
    rate = tokens.gates.rate
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
        known = before.of_weights[..., None] * writes.answers[layer] - writes.wanted[layer]
        if rule.momentum:
            known = known + before.of_surprise[..., None] * (x @ fast.surprise[layer])
        coupling = before.of_writes * (x @ jnp.swapaxes(x, 1, 2)) * (rate[..., None] * scale)[:, None, :, 0]
        deltas.append(scale * solve_unit_lower(coupling, known))

    weighted = mixture.of_writes * rate[:, None]
    z = tokens.queries
    for layer, (x, delta) in enumerate(zip(writes.inputs, deltas, strict=True)):
        y = _with_bias(rule.network, z)
        z = mixture.of_weights[..., None] * (y @ fast.now[layer]) - (weighted * (y @ jnp.swapaxes(x, 1, 2))) @ delta
        if rule.momentum:
            z = z + mixture.of_surprise[..., None] * (y @ fast.surprise[layer])
        if layer < rule.network.depth - 1:
            z = rule.network.activation(z)

    now, surprise = [], []
    for layer, (x, delta) in enumerate(zip(writes.inputs, deltas, strict=True)):
        written = jnp.swapaxes(x * (mixture.of_writes[:, -1] * rate)[..., None], 1, 2) @ delta
        end = mixture.of_weights[:, -1, None, None] * fast.now[layer] - written
        if rule.momentum:
            momentum = fast.surprise[layer]
            gathered = jnp.swapaxes(x * (mixture.kept_writes * rate)[..., None], 1, 2) @ delta
            end = end + mixture.of_surprise[:, -1, None, None] * momentum
            surprise.append(mixture.kept_surprise[:, None, None] * momentum - gathered)
        now.append(end)
    return Fast(tuple(now), tuple(now), tuple(surprise)), z


def step(rule: Rule, params: MemoryParams, fast: Fast, token: Tokens) -> tuple[Fast, Array]:
    """One token, fields `[B, ...]`, as `chunk` takes it, and its answer `[B, V]`; `fast.start` stays as it is."""
    gates = token.gates
    one = jax.tree.map(lambda field: field[:, None], token)
    writes = _prepare(rule, params, fast.start, one.keys, one.values)
    now, surprise = [], []
    for layer, x in enumerate(writes.inputs):
        if writes.deltas is None:
            delta = writes.scales[layer] * (x @ fast.now[layer] - writes.wanted[layer])
        else:
            delta = writes.deltas[layer]
        added = -gates.rate[:, None, None] * (jnp.swapaxes(x, 1, 2) @ delta)
        if rule.momentum:
            added = gates.momentum[:, None, None] * fast.surprise[layer] + added
            surprise.append(added)
        now.append(gates.keep[:, None, None] * fast.now[layer] + gates.real[:, None, None] * added)
    answer = forward(rule.network, MemoryState(tuple(now)), one.queries).outputs[-1][:, 0]
    return Fast(fast.start, tuple(now), tuple(surprise)), answer


def _shift(mixture: Mixture) -> Mixture:
    """What the token before has: W_0 and nothing else for the first."""
    first = jnp.ones_like(mixture.of_weights[:, :1])
    surprise = mixture.of_surprise
    return mixture._replace(
        of_weights=jnp.concatenate([first, mixture.of_weights[:, :-1]], 1),
        of_surprise=None if surprise is None else jnp.concatenate([0 * first, surprise[:, :-1]], 1),
        of_writes=jnp.concatenate([jnp.zeros_like(mixture.of_writes[:, :1]), mixture.of_writes[:, :-1]], 1),
    )


def _with_bias(network: Network, z: Array) -> Array:
    return jnp.concatenate([z, jnp.ones_like(z[..., :1])], -1) if network.use_bias else z
