"""Joins a rule, a network and options into a `Memory`, with the checks on what a user hands it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mnm_jax.memory import _network as network
from mnm_jax.memory._network import Network
from mnm_jax.memory._options import (
    GatedState,
    WriteOptions,
    begin,
    bound,
    check_options,
    descend,
    distance,
    normalise,
    normalise_path,
    safe_root,
)
from mnm_jax.memory._step_size import gram
from mnm_jax.memory._storage import dense
from mnm_jax.memory._types import Memory, MemoryParams, Pair, Storage, WriteInfo

Array = jax.Array


def memory_of_pairs(shape: Network, init: Callable, pairs: Callable, learn_initial: bool, how: WriteOptions) -> Memory:
    """A memory whose rule gives pairs: `pairs(params, weights, keys, values, path) -> (pairs, f(k^w))`.

    With the options off its functions take any storage, and start with dense weights.
    """
    check_options(how)
    key_size, value_size = shape.sizes[0], shape.sizes[-1]

    def start(params: MemoryParams, batch_size: int) -> Any:
        weights = params.weights if learn_initial else jax.lax.stop_gradient(params.weights)
        state = dense.start(weights, batch_size)
        return state if how.pairs_only else begin(state.weights, how)

    def read(params: MemoryParams, state: Any, keys: Array) -> Array:
        del params  # the storage has the fast weights
        check_shape("keys", keys, state, key_size)
        return network.forward(shape, _storage(state), normalise(keys, how.key_norm)).outputs[-1]

    def write_read(params, state, keys, values, rate, read_keys, path=None, **gates) -> tuple[Any, WriteInfo, Array]:
        check_write(key_size, value_size, how, state, keys, values, rate, read_keys, path, gates)
        path = normalise_path(path, keys, how.key_norm)
        keys, read_keys = normalise(keys, how.key_norm), normalise(read_keys, how.key_norm)
        old, predicted, written = state, None, []
        for inner in range(how.inner_steps):
            full, answer = pairs(params, _storage(state), keys, values, path)
            predicted = answer if predicted is None else predicted
            if how.max_norm is not None:
                full = _scale(full, bound(_norm(full), how.max_norm))
            if how.pairs_only:
                written.append(_scale(full, rate))
                state = state.subtract(written[-1])
            else:
                changes = tuple(_dense(pair, w) for pair, w in zip(full, state.weights, strict=True))
                state = descend(state, changes, rate, how, gates, first=inner == 0)
        answers = network.forward(shape, _storage(state), jnp.concatenate([keys, read_keys], 1)).outputs[-1]
        kept, read = jnp.split(answers, [keys.shape[1]], axis=1)
        size = _norm(_join(written)) if how.pairs_only else distance(state, old)
        return state, WriteInfo(mean_square(predicted - values), mean_square(kept - values), size), read

    def write(params, state, keys, values, rate, path=None, **gates) -> tuple[Any, WriteInfo]:
        return write_read(params, state, keys, values, rate, keys[:, :0], path, **gates)[:2]

    return Memory(init, start, read, write, write_read, key_size, value_size, how.gates, how.pairs_only)


def _storage(state: Any) -> Storage:
    return state.storage if isinstance(state, GatedState) else state


def _scale(pairs: tuple[Pair, ...], factor: Array) -> tuple[Pair, ...]:
    return tuple(Pair(p.inputs, factor[:, None, None] * p.delta) for p in pairs)


def _dense(pair: Pair, like: Array) -> Array:
    """X^T D `[B, I, O]`."""
    return jnp.einsum("bhi,bho->bio", pair.inputs.astype(like.dtype), pair.delta.astype(like.dtype))


def _join(written: list[tuple[Pair, ...]]) -> tuple[Pair, ...]:
    """The pairs of all inner steps, layer by layer."""
    if len(written) == 1:
        return written[0]
    layers = zip(*written, strict=True)
    return tuple(Pair(*(jnp.concatenate(rows, 1) for rows in zip(*layer, strict=True))) for layer in layers)


def _norm(pairs: tuple[Pair, ...]) -> Array:
    """|X^T D|_F over all layers, from the Gram matrices of the factors: |X^T D|^2 = sum (X X^T) * (D D^T)."""
    square = sum(jnp.sum(gram(p.inputs) * gram(p.delta), axis=(1, 2)) for p in pairs)
    return safe_root(square)


def mean_square(x: Array) -> Array:
    """Mean over heads and features, `[B, H, V] -> [B]`."""
    return jnp.mean(x * x, axis=(1, 2))


def check_write(key_size, value_size, how, state, keys, values, rate, read_keys, path, gates) -> None:
    """Raises ValueError unless a write was given what it needs."""
    check_shape("keys", keys, state, key_size)
    check_shape("values", values, state, value_size)
    check_shape("read_keys", read_keys, state, key_size)
    if keys.shape[1] != values.shape[1] or rate.shape != keys.shape[:1]:
        raise ValueError(
            "a write needs keys [B, H, K], values [B, H, V] and rate [B], "
            f"got {keys.shape=}, {values.shape=}, {rate.shape=}."
        )
    if set(gates) != set(how.gates):
        raise ValueError(
            f"this memory's write takes the gates ({', '.join(how.gates)}), got ({', '.join(gates)}): they are those "
            "that its WriteOptions switch on."
        )
    for name, gate in gates.items():
        if gate.shape != rate.shape:
            raise ValueError(f"{name} must have shape [B] = {rate.shape}, got {gate.shape}.")
    if path is not None and how.inner_steps > 1:
        raise ValueError("a total derivative is that of one inner step: set inner_steps=1, or leave out the path.")


def check_shape(name: str, array: Array, state: Any, features: int) -> None:
    """Raises ValueError unless an array is `[B, H, features]` with the batch of the state."""
    batch = state.batch_size
    if array.ndim != 3 or array.shape[0] != batch or array.shape[2] != features:
        raise ValueError(f"{name} must have shape [B, H, features] = [{batch}, H, {features}], got {array.shape}.")
