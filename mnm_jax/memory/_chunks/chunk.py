"""Writes and reads of a whole chunk of tokens at once, for keys and values that do not depend on earlier reads.

Each token is a write with one head. The rule computes the pairs, and the coefficients of `mixture` are the share of
each write in the weights after each token, so that all reads of a chunk are products of matrices:

    y W_t = G_t y W_0 + P_t y S_0 + R_t y phi_0 - sum_{s <= t} A_ts beta_s (y . x_s) delta_s

Here y is a layer's input in a read, W_0 and S_0 are the weights and the running write at the chunk's beginning, phi_0
are the initial weights, to which resets return, beta_s is the write rate and (x_s, delta_s) the pair of token s, and G,
P, R and A are the coefficients.

`ErrorRule`: each token corrects the answer of the newest weights. A layer's products a_t = x_t W_{t-1} then solve

    a_t = G_{t-1} x_t W_0 + P_{t-1} x_t S_0 + R_{t-1} x_t phi_0 - sum_{s < t} N_ts e_s,
    N_ts = A_{t-1,s} beta_s c_s (x_t . x_s)

with the errors e and the factors c in delta = c e. For targets T, e = a - T in the last layer, whose equations are a
triangular system (`triangular`), and e = act(a) - T in a hidden layer with the activation act, whose equations are
solved by forward substitution (`substitution`). The layers follow one another, x^{l+1} = act(a^l). The result is that
of single writes, for any chunk size. With `write_through`, the next layer's inputs are act(x_t W_t), which follow from
the layer's errors. With `pre_activation`, e = a - T in hidden layers too, whose equations are then triangular systems.

`GradientRule` with several layers: the errors of a lower layer depend on the upper layers, and no such order exists.
The network is linearised at the weights of the chunk's beginning:

    e_t = f(x_t; W_0) - v_t - sum_{s < t} A_{t-1,s} beta_s c_s (psi_t . psi_s) e_s

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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax._precision import wide
from mnm_jax.memory._chunks.isolation import Lost, isolate
from mnm_jax.memory._chunks.mixture import Mixture, Tokens, mix
from mnm_jax.memory._chunks.moved import Moved, Moving, advance
from mnm_jax.memory._chunks.substitution import substitute
from mnm_jax.memory._chunks.targets import compute_targets
from mnm_jax.memory._chunks.triangular import solve_unit_lower
from mnm_jax.memory._network import forward
from mnm_jax.memory._norms import safe_root
from mnm_jax.memory._pair_memory import PairMemory
from mnm_jax.memory._rules import ErrorRule, GradientRule, Pairs, SnapshotRule
from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._types import MemoryParams, Pair

Array = jax.Array


class ChunkState(NamedTuple):
    """Memories between two tokens.

    Attributes:
      now: the memories.
      start: their weights at the beginning of the chunk; empty if the result does not depend on the chunk size.
      correction: U, a single layer `[B, H, F, V]`; only of a `GradientRule` with `start`, and None if stale.
    """

    now: Moving
    start: tuple[Array, ...]
    correction: Moving | None


@dataclasses.dataclass(frozen=True)
class ChunkedMemory:
    """A memory that is written and read in chunks.

    Attributes:
      memory: the memory, from `check_memory`; each head has its own weights and slow parameters.
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
    def any_size(self) -> bool:
        """True if chunks of any size give the same result."""
        rule = self.memory.rule
        return not (isinstance(rule, SnapshotRule) and rule.uses_weights)

    @property
    def exact(self) -> bool:
        """True if chunks of this size give the result of single tokens."""
        return self.size == 1 or self.any_size

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
        self, params: MemoryParams, state: ChunkState, tokens: Tokens, mixture: Mixture, *, old: bool = False
    ) -> tuple[ChunkState, tuple[Array, ...]]:
        """Writes and reads consecutive tokens of one chunk.

        Args:
          params: slow parameters, leaves `[H, ...]`.
          state: the state before the tokens.
          tokens: fields `[B, H, C, ...]`.
          mixture: the coefficients of the tokens' gates, from `mix`.
          old: whether to return the answers to the write keys, too.

        Returns:
          The state after the tokens, and the answers `[B, H, C, V]` to the queries, each read after the token's write;
          with `old` also the answers to the write keys, each read before the token's write.
        """
        sizes = tokens.keys.shape[:2]
        initial: tuple[Array, ...] = ()
        lost: Lost | None = None
        if mixture.reset is not None:
            initial = self.start(params, sizes[0]).now.weights
            now, tokens, mixture, lost = isolate(state.now, tokens, mixture, initial)
            state = state._replace(now=now)
        targets = self.targets(params, tokens)
        state, tokens, mixture, targets, initial = _flatten((state, tokens, mixture, targets, initial))
        rate = tokens.gates.rate
        after = Moved(state.now, mixture, initial)
        before = after._replace(mixture=mixture.before())
        pairs, correction = self._pairs(params, state, tokens, targets, before, after)
        answers = [self._read(after, pairs, tokens.queries, rate)]
        if old:
            answers.append(self._read(before, pairs, tokens.keys, rate))

        def end(moving: Moving, pairs: Pairs) -> Moving:
            return after._replace(moving=moving).end(pairs, rate)

        state, found = _unflatten((self._after(state, pairs, correction, end), tuple(answers)), sizes)
        return (state, found) if lost is None else (state._replace(now=lost.end(state.now)), lost.answers(found))

    def _read(self, moved: Moved, pairs: Pairs, keys: Array, rate: Array) -> Array:
        """Returns the answers `[N, C, V]` to keys `[N, C, K]`, one per token."""
        network, z = self.memory.network, keys
        assert moved.mixture is not None  # only in a chunk
        weighted = moved.mixture.of_writes * rate[:, None]
        for layer, (x, delta) in enumerate(pairs):
            y = network.layer_inputs(z)
            z = moved.product(layer, y)
            dtype = y.dtype
            if dtype == jnp.float16:  # the product of two long keys would exceed its numbers
                y, x, delta = map(wide, (y, x, delta))
            z = z - ((weighted.astype(y.dtype) * (y @ jnp.swapaxes(x, 1, 2))) @ delta).astype(dtype)
            if layer < network.depth - 1:
                z = network.activation(z)
        return z

    def step(
        self, params: MemoryParams, state: ChunkState, token: Tokens, *, old: bool = False
    ) -> tuple[ChunkState, tuple[Array, ...]]:
        """Writes and reads one token, with fields `[B, H, 1, ...]`, as `chunk` does."""
        sizes = token.keys.shape[:2]
        flat, one, targets = _flatten((state, token, self.targets(params, token)))
        rule, before = self.memory.rule, Moved(flat.now)
        after = before
        if isinstance(rule, ErrorRule) and rule.write_through:
            after = Moved(flat.now, mix(one.gates, momentum=self.memory.options.momentum))
        pairs, correction = _unflatten(self._pairs(params, flat, one, targets, before, after), sizes)
        # The weights are not reshaped: XLA would then neither update them in place nor fuse the update with momentum.
        gates = jax.tree.map(lambda gate: gate[..., 0], token.gates)
        state = self._after(state, pairs, correction, partial(advance, gates=gates))
        answers = [self._answers(_flatten(state.now.weights), one.queries)]
        if old:
            answers.append(self._answers(flat.now.weights, one.keys))
        return state, _unflatten(tuple(answers), sizes)

    def _answers(self, weights: tuple[Array, ...], keys: Array) -> Array:
        return forward(self.memory.network, MemoryState(weights), keys).outputs[-1]

    def _after(self, state: ChunkState, pairs: Pairs, correction: Pairs, move: Callable) -> ChunkState:
        """Returns the state after the tokens, given `move: (moving, pairs) -> moving`."""
        corrected = None if state.correction is None else move(state.correction, correction)
        return state._replace(now=move(state.now, pairs), correction=corrected)

    def targets(self, params: MemoryParams, tokens: Tokens) -> tuple[Array, ...]:
        """Returns the targets of every layer, `[B, H, C, O]`; empty for a rule without targets.

        Only the targets and the pairs of a `SnapshotRule` with parameters use slow parameters, which differ between
        heads; everything else treats all memories alike.
        """
        rule = self.memory.rule
        if not isinstance(rule, ErrorRule):
            return ()
        targets = partial(compute_targets, self.memory.network, rule)
        return jax.vmap(targets, (0, 1, 1), out_axes=1)(params.targets, tokens.keys, tokens.values)

    def _pairs(
        self,
        params: MemoryParams,
        state: ChunkState,
        tokens: Tokens,
        targets: tuple[Array, ...],
        before: Moved,
        after: Moved,
    ) -> tuple[Pairs, Pairs]:
        """Returns the pairs of the memory and the pairs of its correction, at rate one.

        Args:
          params: slow parameters, leaves `[H, ...]`.
          state: leaves `[N, ...]`.
          tokens: fields `[N, C, ...]`.
          targets: `[N, C, O]` per layer.
          before: the weights before each token's write.
          after: the weights after it; used with write-through.
        """
        network, rule, rate = self.memory.network, self.memory.rule, tokens.gates.rate
        rows = tokens.keys, tokens.values
        if isinstance(rule, ErrorRule):
            return self._error_pairs(rule, tokens, targets, before, after), ()
        assert isinstance(rule, SnapshotRule)  # by `check_memory`
        start = MemoryState(state.start or state.now.weights)
        if state.correction is None or not isinstance(rule, GradientRule):
            return self._row_pairs(rule, params.targets, start, *rows), ()
        linear = rule.linearise(network, start, *rows)
        corrected = before._replace(moving=state.correction)
        errors = linear.errors + corrected.product(0, linear.features)
        coupling = corrected.coupling(linear.features, linear.scale, rate)
        if coupling is not None:
            errors = solve_unit_lower(coupling, wide(errors)).astype(errors.dtype)
        deltas = (linear.scale * wide(errors)).astype(errors.dtype)
        return linear.pairs(deltas), (Pair(linear.features, deltas),)

    def _row_pairs(self, rule: SnapshotRule, targets: Any, start: MemoryState, keys: Array, values: Array) -> Pairs:
        """Returns the pairs for parameters with leaves `[H, ...]`, and for weights, keys and values `[N, ...]`."""
        pairs = partial(rule.row_pairs, self.memory.network)
        leaves = jax.tree.leaves(targets)
        if not leaves:  # all memories are alike
            return pairs(targets, start, keys, values)
        heads = leaves[0].shape[0]
        by_head = _unflatten((start, keys, values), (keys.shape[0] // heads, heads))
        return _flatten(jax.vmap(pairs, (0, 1, 1, 1), out_axes=1)(targets, *by_head))

    def _error_pairs(
        self, rule: ErrorRule, tokens: Tokens, targets: tuple[Array, ...], before: Moved, after: Moved
    ) -> Pairs:
        network, rate = self.memory.network, tokens.gates.rate
        z, dtype, pairs = tokens.keys, tokens.keys.dtype, []
        for layer, target in enumerate(targets):
            x, hidden = network.layer_inputs(z), layer < network.depth - 1
            scale = rule.step_scale(wide(x), target.shape[-1])
            coupling = before.coupling(x, scale, rate)
            known, target = wide(before.product(layer, x)), wide(target)
            if hidden and not rule.pre_activation:
                answer = known if coupling is None else substitute(network.activation, coupling, known, target)
                outputs = network.activation(answer)
                error = outputs - target
            else:
                error = known - target if coupling is None else solve_unit_lower(coupling, known - target)
            if hidden:
                if rule.write_through:
                    outputs = network.activation(after.answers(layer, x, scale, rate, error))
                z = outputs.astype(dtype)
            pairs.append(_pair(x, scale, error))
        return tuple(pairs)


def _pair(x: Array, scale: Array, error: Array) -> Pair:
    """Returns a pair with the product x (x) scale error, in the dtype of x."""
    if x.dtype != jnp.float16:
        return Pair(x, (scale * error).astype(x.dtype))
    # The scale 1 / |x|^2 of a short key would exceed the numbers of float16: x and the error take its root each.
    root = safe_root(jnp.where(scale > 256, scale, 1))
    return Pair((root * wide(x)).astype(x.dtype), (scale / root * error).astype(x.dtype))


def _flatten(tree: Any) -> Any:
    """Returns leaves `[B, H, ...]` as `[N, ...]`."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def _unflatten(tree: Any, sizes: tuple[int, ...]) -> Any:
    """Returns leaves `[N, ...]` as `[B, H, ...]`, for `sizes = (B, H)`."""
    return jax.tree.map(lambda x: x.reshape(*sizes, *x.shape[1:]), tree)
