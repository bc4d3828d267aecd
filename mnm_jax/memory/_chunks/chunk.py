"""Writes and reads of a whole chunk of tokens at once, for keys and values that do not depend on earlier reads.

Each token is a write with one head. The rule computes the pairs, and the coefficients of `mixture` are the share of
each write in the weights after each token, so that all reads of a chunk are products of matrices:

    y W_t = G_t y W_0 + P_t y S_0 - sum_{s <= t} A_ts r_s (y . x_s) delta_s

Here y is a layer's input in a read, W_0 and S_0 are the weights and the momentum at the chunk's beginning, r_s is the
write rate and (x_s, delta_s) the pair of token s, and G, P and A are the coefficients.

`ErrorRule`: each token corrects the answer of the newest weights. A layer's products a_t = x_t W_{t-1} then solve

    a_t = G_{t-1} x_t W_0 + P_{t-1} x_t S_0 - sum_{s < t} N_ts e_s,    N_ts = A_{t-1,s} r_s c_s (x_t . x_s)

with the activation act, the errors e = act(a) - T for the targets T, and the factors c in delta = c e: a triangular
system in the last layer (`triangular`), forward substitution in the hidden layers (`substitution`). The layers follow
one another, x^{l+1} = act(a^l). The result is that of single writes, for any chunk size.

`GradientRule` with several layers: the errors of a lower layer depend on the upper layers, and no such order exists.
The network is linearised at the weights of the chunk's beginning:

    e_t = f(x_t; W_0) - v_t - sum_{s < t} A_{t-1,s} r_s c_s (psi_t . psi_s) e_s

with the features psi from the rule. The sum is a memory itself, the *correction* U, which is written and read with psi,
begins each chunk at zero, and stands for the earlier tokens of the chunk when a sequence continues in the middle of a
chunk. Chunks of one token give the rule's own writes.

Every other `SnapshotRule`, and the gradient rule if `stale`, computes its pairs with the weights at the chunk's
beginning.

Shape letters: `B` examples, `H` memories per example, `N` = B H, `C` tokens of a chunk, `K` key features, `V` value
features, `I`/`O` inputs and outputs of a layer, `F` features psi.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from mnm_jax.memory._chunks.mixture import Gates, Mixture, wide
from mnm_jax.memory._chunks.substitution import substitute
from mnm_jax.memory._chunks.triangular import solve_unit_lower
from mnm_jax.memory._memory import Memory, check_is_memory
from mnm_jax.memory._network import forward
from mnm_jax.memory._pair_memory import PairMemory
from mnm_jax.memory._rules import ErrorRule, GradientRule, Pairs, SnapshotRule
from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._storage.products import shared_times, times
from mnm_jax.memory._types import MemoryParams, Pair, Storage, TargetMaps

Array = jax.Array


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


class Moving(NamedTuple):
    """Weights between two tokens, which the gates of the next tokens change, and which may be written.

    Attributes:
      weights: W, one `[B, H, I, O]` per layer.
      surprise: the running write S, one `[B, H, I, O]` per layer; empty without momentum.
    """

    weights: tuple[Array, ...]
    surprise: tuple[Array, ...]


class ChunkState(NamedTuple):
    """Memories between two tokens.

    Attributes:
      now: the memories.
      start: their weights at the beginning of the chunk; empty if the result does not depend on the chunk size.
      correction: U, a single layer `[B, H, F, V]`; None if stale, or without `start`.
    """

    now: Moving
    start: tuple[Array, ...]
    correction: Moving | None


class _Moved(NamedTuple):
    """Weights before or after each token of a chunk, without its writes: row t of a product is x_t (G_t W + P_t S).

    Attributes:
      moving: W and S, leaves `[N, I, O]`.
      mixture: G and P.
    """

    moving: Moving
    mixture: Mixture

    def product(self, layer: int, x: Array) -> Array:
        """See `Storage`."""
        mixed = _rows(self.mixture.of_start, times(x, self.moving.weights[layer]))
        if self.mixture.surprise is not None:
            mixed = mixed + _rows(self.mixture.surprise.of_start, times(x, self.moving.surprise[layer]))
        return mixed


class _NoWeights:
    """The storage with which targets are computed, before the weights of a token are known."""

    def product(self, layer: int, x: Array) -> Array:
        """Raises ValueError."""
        raise ValueError(
            "memory must have a rule whose layer_targets do not depend on the fast weights, which are not known before "
            "the targets of a chunk: run this memory step by step in MNMCell."
        )

    product_transposed = product

    def slow_product(self, x: Array, kernel: Array) -> Array:
        """See `Storage`."""
        return shared_times(x, kernel)


@dataclasses.dataclass(frozen=True)
class ChunkedMemory:
    """A memory that is written and read in chunks.

    Attributes:
      memory: the memory, from `check_memory`; each head has its own one, with its own slow parameters.
      size: tokens per chunk.
      stale: whether the gradient rule takes all gradients of a chunk at the weights of its beginning.

    Raises:
      ValueError: for `stale` without effect.
    """

    memory: PairMemory
    size: int
    stale: bool

    def __post_init__(self) -> None:
        if self.stale and not isinstance(self.memory.rule, GradientRule):
            raise ValueError(
                "stale=True needs a gradient_memory with hidden_sizes; the chunks of other memories have one form: "
                "leave stale=False."
            )

    @property
    def exact(self) -> bool:
        """True if the result does not depend on the chunk size."""
        rule = self.memory.rule
        return self.size == 1 or not (isinstance(rule, SnapshotRule) and rule.uses_weights)

    def start(self, params: MemoryParams, batch_size: int) -> ChunkState:
        """Returns the state at the start of sequences, from slow parameters with leaves `[H, ...]`."""
        state = jax.vmap(partial(self.memory.start, batch_size=batch_size), out_axes=1)(params)
        now = Moving(state.weights, self._at_rest(state.weights))
        return self.restart(ChunkState(now, (), None))

    def restart(self, state: ChunkState) -> ChunkState:
        """Returns the state at the beginning of a chunk, from the state at the end of the previous one."""
        if self.exact:
            return state
        # A copy, since a caller may donate the carry, which takes one buffer per leaf.
        state = ChunkState(state.now, jax.tree.map(jnp.copy, state.now.weights), None)
        if self.stale or not isinstance(self.memory.rule, GradientRule):
            return state
        sizes, weights = state.now.weights[0].shape[:2], state.now.weights[-1]
        features = sum(fan_in for fan_in, _ in self.memory.network.shapes)
        zeros = (jnp.zeros_like(weights, shape=(*sizes, features, self.memory.value_size)),)
        return state._replace(correction=Moving(zeros, self._at_rest(zeros)))

    def _at_rest(self, weights: tuple[Array, ...]) -> tuple[Array, ...]:
        return jax.tree.map(jnp.zeros_like, weights) if self.memory.options.momentum else ()

    def chunk(
        self, params: MemoryParams, state: ChunkState, tokens: Tokens, mixture: Mixture
    ) -> tuple[ChunkState, Array]:
        """Writes and reads consecutive tokens of one chunk.

        Args:
          params: slow parameters, leaves `[H, ...]`.
          state: the state before the tokens.
          tokens: fields `[B, H, C, ...]`.
          mixture: the coefficients of the tokens' gates, from `mix`.

        Returns:
          The state after the tokens, and the answers `[B, H, C, V]`, each read after the token's write.
        """
        network, sizes = self.memory.network, tokens.keys.shape[:2]
        targets = self._targets(params, tokens)
        state, tokens, mixture, targets = _flatten((state, tokens, mixture, targets))
        pairs, correction = self._pairs(state, tokens, targets, mixture.before())
        rate = tokens.gates.rate
        weighted = (mixture.of_writes * rate[:, None]).astype(tokens.queries.dtype)
        moved, z = _Moved(state.now, mixture), tokens.queries
        for layer, (x, delta) in enumerate(pairs):
            y = network.layer_inputs(z)
            z = moved.product(layer, y) - (weighted * (y @ jnp.swapaxes(x, 1, 2))) @ delta
            if layer < network.depth - 1:
                z = network.activation(z)

        end = partial(_end, mixture=mixture, rate=rate)
        return _unflatten((self._after(state, pairs, correction, end), z), sizes)

    def step(self, params: MemoryParams, state: ChunkState, token: Tokens) -> tuple[ChunkState, Array]:
        """Writes and reads one token, with fields `[B, H, 1, ...]`, as `chunk` does."""
        sizes = token.keys.shape[:2]
        flat, one, targets = _flatten((state, token, self._targets(params, token)))
        pairs, correction = _unflatten(self._pairs(flat, one, targets, None), sizes)
        # The weights are not reshaped: XLA would then neither update them in place nor fuse the update with momentum.
        gates = Gates(*(gate[..., 0] for gate in token.gates))
        state = self._after(state, pairs, correction, partial(_advance, gates=gates))
        answers = forward(self.memory.network, MemoryState(_flatten(state.now.weights)), one.queries).outputs
        return state, _unflatten(answers[-1], sizes)

    def _after(self, state: ChunkState, pairs: Pairs, correction: Pairs, move: Callable) -> ChunkState:
        """Returns the state after the tokens, given `move: (moving, pairs) -> moving`."""
        corrected = None if state.correction is None else move(state.correction, correction)
        return state._replace(now=move(state.now, pairs), correction=corrected)

    def _targets(self, params: MemoryParams, tokens: Tokens) -> tuple[Array, ...]:
        """Returns the targets of every layer, `[B, H, C, O]`; empty for a rule without targets.

        Only the targets use slow parameters, which differ between heads; everything else treats all memories alike.
        """
        rule = self.memory.rule
        if not isinstance(rule, ErrorRule):
            return ()
        targets = partial(_targets, self.memory, rule)
        return jax.vmap(targets, (0, 1, 1), out_axes=1)(params.targets, tokens.keys, tokens.values)

    def _pairs(
        self, state: ChunkState, tokens: Tokens, targets: tuple[Array, ...], before: Mixture | None
    ) -> tuple[Pairs, Pairs]:
        """Returns the pairs of the memory and the pairs of its correction, at rate one.

        Args:
          state: leaves `[N, ...]`.
          tokens: fields `[N, C, ...]`.
          targets: `[N, C, O]` per layer.
          before: the coefficients of the weights before each token's write; None for a single token.
        """
        network, rule = self.memory.network, self.memory.rule
        rows = tokens.keys, tokens.values
        if isinstance(rule, ErrorRule):
            return self._error_pairs(rule, state.now, tokens, targets, before), ()
        assert isinstance(rule, SnapshotRule)  # by `check_memory`
        start = MemoryState(state.start or state.now.weights)
        if state.correction is None or not isinstance(rule, GradientRule):
            return rule.row_pairs(network, start, *rows), ()
        linear = rule.linearise(network, start, *rows)
        errors = linear.errors + _storage(state.correction, before).product(0, linear.features)
        coupling = _coupling(linear.features, linear.scale, tokens.gates.rate, before)
        if coupling is not None:
            errors = solve_unit_lower(coupling, wide(errors)).astype(errors.dtype)
        return linear.pairs(errors), (Pair(linear.features, linear.scale * errors),)

    def _error_pairs(
        self, rule: ErrorRule, now: Moving, tokens: Tokens, targets: tuple[Array, ...], before: Mixture | None
    ) -> Pairs:
        network, storage = self.memory.network, _storage(now, before)
        z, dtype, pairs = tokens.keys, tokens.keys.dtype, []
        for layer, target in enumerate(targets):
            x = network.layer_inputs(z)
            scale = rule.step_scale(wide(x), target.shape[-1])
            coupling = _coupling(x, scale, tokens.gates.rate, before)
            known, target = wide(storage.product(layer, x)), wide(target)
            if layer == network.depth - 1:
                error = known - target if coupling is None else solve_unit_lower(coupling, known - target)
            else:
                answer = known if coupling is None else substitute(network.activation, coupling, known, target)
                outputs = network.activation(answer)
                z, error = outputs.astype(dtype), outputs - target
            pairs.append(Pair(x, (scale * error).astype(dtype)))
        return tuple(pairs)


def check_memory(memory: Memory) -> PairMemory:
    """Returns the memory; raises TypeError or ValueError if it cannot be written in chunks."""
    check_is_memory(memory)
    remedy = "or run this memory step by step in MNMCell."
    if not isinstance(memory, PairMemory):
        raise ValueError(
            f"memory must be one that is written in pairs, got {type(memory).__name__}: use gradient_memory, "
            f"local_memory or matrix_memory, {remedy}"
        )
    rule, options = memory.rule, memory.options
    if not isinstance(rule, ErrorRule | SnapshotRule):
        raise ValueError(
            f"memory must have a rule that can write chunks of tokens, got the rule {rule}: give rule_memory an "
            f"ErrorRule or a SnapshotRule, {remedy}"
        )
    if isinstance(rule, ErrorRule):
        _probe_targets(memory, rule)
    refused = {
        "optimizer": (options.optimizer is not None, None),
        "inner_steps": (options.inner_steps != 1, 1),
        "max_norm": (options.max_norm is not None, None),
        "never_worse": (options.never_worse, False),
    }
    for name, (is_set, off) in refused.items():
        if is_set:
            raise ValueError(
                f"memory must not have WriteOptions({name}={getattr(options, name)!r}), which the chunks of a layer "
                f"cannot follow: leave {name}={off}, {remedy}"
            )
    return memory


def _probe_targets(memory: PairMemory, rule: ErrorRule) -> None:
    """Computes targets of abstract shapes, which raises ValueError if they depend on the fast weights."""
    keys, values = (jax.ShapeDtypeStruct((1, 1, n), memory.param_dtype) for n in (memory.key_size, memory.value_size))
    params = jax.eval_shape(memory.init, jax.random.key(0))
    jax.eval_shape(partial(_targets, memory, rule), params.targets, keys, values)


def _targets(
    memory: PairMemory, rule: ErrorRule, maps: TargetMaps | None, keys: Array, values: Array
) -> tuple[Array, ...]:
    """Returns the targets of every layer, `[B, C, O]`."""
    return rule.layer_targets(memory.network, maps, cast(Storage, _NoWeights()), keys, values)


def _storage(moving: Moving, before: Mixture | None) -> MemoryState | _Moved:
    """Returns the weights before each token's write; before a single token they are the weights themselves."""
    return MemoryState(moving.weights) if before is None else _Moved(moving, before)


def _coupling(x: Array, scale: Array, rate: Array, before: Mixture | None) -> Array | None:
    """Returns the effect of each token's error on the answers to later tokens, `[N, C, C]`; None for one token."""
    if before is None:
        return None
    x = wide(x)
    return before.of_writes * (x @ jnp.swapaxes(x, 1, 2)) * (rate * wide(scale)[..., 0])[:, None]


def _end(moving: Moving, pairs: Pairs, mixture: Mixture, rate: Array) -> Moving:
    """Returns weights `[N, I, O]` after the tokens of a chunk."""
    shares, weights, surprise = mixture.surprise, [], []
    for layer, w in enumerate(moving.weights):
        end = _scaled(mixture.of_start[:, -1], w) - _sum(pairs[layer], mixture.of_writes[:, -1] * rate, w)
        if shares is not None:
            s = moving.surprise[layer]
            end, kept = end + _scaled(shares.of_start[:, -1], s), _scaled(shares.end_of_start, s)
            surprise.append(kept - _sum(pairs[layer], shares.end_of_writes * rate, s))
        weights.append(end)
    return Moving(tuple(weights), tuple(surprise))


def _advance(moving: Moving, pairs: Pairs, gates: Gates) -> Moving:
    """Returns weights `[B, H, I, O]` after one token with gates `[B, H]`."""
    weights, surprise = [], []
    for layer, w in enumerate(moving.weights):
        added = -_sum(pairs[layer], gates.rate[..., None], w)
        if moving.surprise:
            added = _scaled(gates.momentum, moving.surprise[layer]) + added
            surprise.append(added)
        weights.append(_scaled(gates.decay, w) + _scaled(gates.mask, added))
    return Moving(tuple(weights), tuple(surprise))


def _sum(pair: Pair, factor: Array, like: Array) -> Array:
    """Returns sum_t factor_t x_t (x) delta_t in the dtype of `like`, for factors `[..., C]`."""
    rows = pair.inputs * factor[..., None].astype(pair.inputs.dtype)
    return (jnp.swapaxes(rows, -2, -1) @ pair.delta).astype(like.dtype)


def _scaled(factor: Array, w: Array) -> Array:
    """Returns weights `[..., I, O]` times a factor `[...]`, in the dtype of the weights."""
    return factor[..., None, None].astype(w.dtype) * w


def _rows(factor: Array, x: Array) -> Array:
    """Returns rows `[N, C, O]` times a factor `[N, C]`, in the dtype of the rows."""
    return factor[..., None].astype(x.dtype) * x


def _flatten(tree: Any) -> Any:
    """Returns leaves `[B, H, ...]` as `[N, ...]`."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def _unflatten(tree: Any, sizes: tuple[int, ...]) -> Any:
    """Returns leaves `[N, ...]` as `[B, H, ...]`, for `sizes = (B, H)`."""
    return jax.tree.map(lambda x: x.reshape(*sizes, *x.shape[1:]), tree)
