"""Writes and reads of a whole chunk of tokens at once, for keys and values that do not depend on earlier reads.

Each token is a write with one head. The rule computes the pairs, and the coefficients of `mixture` are the share of
each write in the weights after each token, so that all reads of a chunk are products of matrices:

    y W_t = G_t y W_0 + P_t y S_0 - sum_{s <= t} A_ts r_s (y . x_s) delta_s

The inputs and activations of the layers are computed with the weights at the chunk's beginning. With an `ErrorRule`
each token corrects the answer of the newest weights, x_t W_{t-1}, which takes one triangular solve per layer. With a
`SnapshotRule` (the gradient through several layers) the pairs too are computed with the weights at the chunk's
beginning, as in Titans. A chunk of one token therefore equals `Memory.write_read`, and with a memory of one layer the
result does not depend on the chunk size.

Shape letters: `B` examples, `H` memories per example, `N` = B H, `C` tokens of a chunk, `K` key features, `V` value
features, `I`/`O` inputs and outputs of a layer.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax.memory._chunks.mixture import Gates, Mixture
from mnm_jax.memory._chunks.triangular import solve_unit_lower
from mnm_jax.memory._memory import Memory, check_is_memory
from mnm_jax.memory._network import forward
from mnm_jax.memory._pair_memory import PairMemory
from mnm_jax.memory._rules import ErrorRule, SnapshotRule
from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._storage.products import times
from mnm_jax.memory._types import MemoryParams, Pair

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


class ChunkState(NamedTuple):
    """Memories between two tokens, one `[B, H, I, O]` per layer in each field.

    Attributes:
      start: the weights at the beginning of the chunk.
      now: the newest weights.
      surprise: the running write S; empty without momentum.
    """

    start: tuple[Array, ...]
    now: tuple[Array, ...]
    surprise: tuple[Array, ...]


class _Errors(NamedTuple):
    """The terms of a layer's deltas, `scale (x W_now - wanted)`, that follow from the weights at the chunk's beginning.

    Attributes:
      inputs: x, `[N, C, I]`.
      answers: x W_start, `[N, C, O]`.
      wanted: `[N, C, O]`.
      scale: `[N, C, 1]`.
    """

    inputs: Array
    answers: Array
    wanted: Array
    scale: Array


def check_memory(memory: Memory) -> PairMemory:
    """Returns the memory if the chunked form can write it.

    Raises:
      TypeError: for anything that is no `Memory`.
      ValueError: if it cannot; the message names the option and the remedy.
    """
    check_is_memory(memory)
    if not isinstance(memory, PairMemory):
        raise ValueError(
            f"memory must be one that is written in pairs, got {type(memory).__name__}: use gradient_memory, "
            "local_memory or matrix_memory, or run this memory step by step in MNMCell."
        )
    if not isinstance(memory.rule, ErrorRule | SnapshotRule):
        raise ValueError(
            f"memory must have a rule that can write chunks of tokens, got the rule {memory.rule}: give rule_memory an "
            "ErrorRule or a SnapshotRule, or run this memory step by step in MNMCell."
        )
    options = memory.options
    refused = {
        "optimizer": (options.optimizer is not None, None),
        "inner_steps": (options.inner_steps != 1, 1),
        "max_norm": (options.max_norm is not None, None),
    }
    for name, (is_set, off) in refused.items():
        if is_set:
            raise ValueError(
                f"memory must not have WriteOptions({name}={getattr(options, name)!r}), which the chunks of a layer "
                f"cannot follow: leave {name}={off}, or run this memory step by step in MNMCell."
            )
    return memory


def chunk(
    memory: PairMemory, params: MemoryParams, state: ChunkState, tokens: Tokens, mixture: Mixture
) -> tuple[ChunkState, Array]:
    """Writes and reads a whole chunk, beginning with `state`, whose `start` equals its `now`.

    Args:
      memory: checked by `check_memory`.
      params: its slow parameters, leaves `[H, ...]`.
      state: the memories at the chunk's beginning.
      tokens: the tokens, fields `[B, H, C, ...]`.
      mixture: the coefficients of the tokens' gates, from `mix`.

    Returns:
      The state at the chunk's end, whose `start` equals its `now`, and the answers `[B, H, C, V]`, each read after the
      token's write.
    """
    network, sizes = memory.network, tokens.keys.shape[:2]
    targets = _targets(memory, params, state, tokens)
    state, tokens, mixture, targets = _flatten((state, tokens, mixture, targets))
    rate, shares = tokens.gates.rate, mixture.surprise
    if isinstance(memory.rule, ErrorRule):
        errors = _errors(memory, memory.rule, state.start, tokens.keys, targets)
        before = mixture.before()
        surprises = state.surprise or (None,) * network.depth
        pairs = tuple(_solve(error, s, rate, before) for error, s in zip(errors, surprises, strict=True))
    else:
        pairs = _snapshot_pairs(memory, state.start, tokens)

    weighted = mixture.of_writes * rate[:, None]
    z = tokens.queries
    for layer, (x, delta) in enumerate(pairs):
        y = network.layer_inputs(z)
        z = mixture.of_start[..., None] * times(y, state.now[layer])
        z = z - (weighted * (y @ jnp.swapaxes(x, 1, 2))) @ delta
        if shares is not None:
            z = z + shares.of_start[..., None] * times(y, state.surprise[layer])
        if layer < network.depth - 1:
            z = network.activation(z)

    now, surprise = [], []
    for layer, (x, delta) in enumerate(pairs):
        end = _scaled(mixture.of_start[:, -1], state.now[layer])
        end = end - _sum(x, mixture.of_writes[:, -1] * rate, delta).astype(end.dtype)
        if shares is not None:
            end = end + _scaled(shares.of_start[:, -1], state.surprise[layer])
            kept = _scaled(shares.end_of_start, state.surprise[layer])
            surprise.append(kept - _sum(x, shares.end_of_writes * rate, delta).astype(kept.dtype))
        now.append(end)
    end_state = ChunkState(start=tuple(now), now=tuple(now), surprise=tuple(surprise))
    return _unflatten((end_state, z), sizes)


def step(memory: PairMemory, params: MemoryParams, state: ChunkState, token: Tokens) -> tuple[ChunkState, Array]:
    """Writes and reads one token as `chunk` does; `state.start` is unchanged.

    Args:
      memory: checked by `check_memory`.
      params: its slow parameters, leaves `[H, ...]`.
      state: the memories after the previous token.
      token: the token, fields `[B, H, 1, ...]`.

    Returns:
      The new state, and the answer `[B, H, 1, V]`.
    """
    targets = _targets(memory, params, state, token)
    flat, one, targets = _flatten((state, token, targets))
    if isinstance(memory.rule, ErrorRule):
        errors = _errors(memory, memory.rule, flat.start, one.keys, targets)
        pairs = tuple(
            Pair(e.inputs, e.scale * (times(e.inputs, w) - e.wanted)) for e, w in zip(errors, flat.now, strict=True)
        )
    else:
        pairs = _snapshot_pairs(memory, flat.start, one)

    # The weights are not reshaped here: XLA would then neither update them in place nor fuse the update with momentum.
    rate, decay, momentum, mask = (gate[..., 0] for gate in token.gates)
    now, surprise = [], []
    for layer, (x, delta) in enumerate(_unflatten(pairs, token.keys.shape[:2])):
        w = state.now[layer]
        added = -_sum(x, rate[..., None], delta).astype(w.dtype)
        if memory.options.momentum:
            added = _scaled(momentum, state.surprise[layer]) + added
            surprise.append(added)
        now.append(_scaled(decay, w) + _scaled(mask, added))
    state = ChunkState(start=state.start, now=tuple(now), surprise=tuple(surprise))
    answer = forward(memory.network, MemoryState(_flatten(state.now)), one.queries).outputs[-1]
    return state, _unflatten(answer, token.keys.shape[:2])


def _targets(memory: PairMemory, params: MemoryParams, state: ChunkState, tokens: Tokens) -> tuple[Array, ...]:
    """Returns the targets of every layer, `[B, H, C, O]`; empty for a rule without targets.

    Only the targets use slow parameters, which differ between heads; everything else treats the B H memories alike.
    """
    if not isinstance(memory.rule, ErrorRule):
        return ()
    targets = jax.vmap(partial(memory.rule.layer_targets, memory.network), (0, 1, 1, 1), out_axes=1)
    return targets(params.targets, MemoryState(state.start), tokens.keys, tokens.values)


def _errors(
    memory: PairMemory, rule: ErrorRule, start: tuple[Array, ...], keys: Array, targets: tuple[Array, ...]
) -> list[_Errors]:
    """Returns the terms of each layer's errors that follow from the weights at the chunk's beginning."""
    network, storage = memory.network, MemoryState(start)
    errors, z = [], keys
    for layer, target in enumerate(targets):
        x = network.layer_inputs(z)
        answer, wanted = storage.product(layer, x), target
        if layer < network.depth - 1:
            z = network.activation(answer)
            # The error of a hidden layer is z - t. The local rule leaves out the activation's derivative: the change of
            # x W since the chunk's beginning is taken as the change of z.
            wanted = target + (answer - z)
        errors.append(_Errors(inputs=x, answers=answer, wanted=wanted, scale=rule.step_scale(x, answer.shape[-1])))
    return errors


def _solve(errors: _Errors, surprise: Array | None, rate: Array, before: Mixture) -> Pair:
    """Returns the pair of one layer, with each token's error computed from the weights after the previous token.

    E = G' X W_0 + P' X S_0 - T - (A' r s (X X^T)) E, with the coefficients of the previous token, is a triangular
    system with ones on the diagonal.
    """
    x, answers, wanted, scale = errors
    known = before.of_start[..., None] * answers - wanted
    if surprise is not None and before.surprise is not None:
        known = known + before.surprise.of_start[..., None] * times(x, surprise)
    coupling = before.of_writes * (x @ jnp.swapaxes(x, 1, 2)) * (rate[..., None] * scale)[:, None, :, 0]
    return Pair(x, scale * solve_unit_lower(coupling, known))


def _snapshot_pairs(memory: PairMemory, start: tuple[Array, ...], tokens: Tokens) -> tuple[Pair, ...]:
    assert isinstance(memory.rule, SnapshotRule)  # by `check_memory`
    return memory.rule.row_pairs(memory.network, MemoryState(start), tokens.keys, tokens.values)


def _sum(x: Array, factor: Array, delta: Array) -> Array:
    """Returns sum_t factor_t x_t (x) delta_t: `[..., C, I], [..., C], [..., C, O] -> [..., I, O]`."""
    return jnp.swapaxes(x * factor[..., None], -2, -1) @ delta


def _scaled(factor: Array, w: Array) -> Array:
    """Returns weights `[..., I, O]` times a factor `[...]`, in the dtype of the weights."""
    return factor[..., None, None].astype(w.dtype) * w


def _flatten(tree: Any) -> Any:
    """Returns leaves `[B, H, ...]` as `[N, ...]`."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def _unflatten(tree: Any, sizes: tuple[int, ...]) -> Any:
    """Returns leaves `[N, ...]` as `[B, H, ...]`, for `sizes = (B, H)`."""
    return jax.tree.map(lambda x: x.reshape(*sizes, *x.shape[1:]), tree)
