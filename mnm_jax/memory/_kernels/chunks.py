"""Chunks of an `ErrorRule` in a kernel: the equations of `_chunks/chunk.py` in operations that Pallas supports.

The weights stay on the chip over all chunks of a sequence. For the backward pass the kernel stores them at the
beginning of each chunk, and a second kernel goes through the chunks from the last to the first: it computes each chunk
again and applies its vjp, while the cotangent of the weights stays on the chip.

Shape letters: `N` memories, `S` chunks, `C` tokens of a chunk, `K` key features, `V` value features, `I`/`O` inputs
and outputs of a layer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax._refuse import constant, reverse_only
from mnm_jax._vary import vary_alike
from mnm_jax.memory._chunks.chunk import ChunkedMemory, ChunkState
from mnm_jax.memory._chunks.mixture import Mixture, Tokens
from mnm_jax.memory._kernels.dots import column, row
from mnm_jax.memory._kernels.needs import check_needs, memory_needs, size_need
from mnm_jax.memory._kernels.on_chip import ONE_DERIVATIVE, scan_on_chip
from mnm_jax.memory._network import Network
from mnm_jax.memory._pair_memory import PairMemory
from mnm_jax.memory._rules import ErrorRule
from mnm_jax.memory._types import MemoryParams

Array = jax.Array
Weights = tuple[Array, ...]
_KIBIBYTES = 128  # largest weights and cotangents of a head that compile for an H100 (Triton 3.9, chunks of 16)
CHUNK = 16  # tokens per chunk with which the kernel was timed
# Where the kernel was measured to be faster than XLA's program in chunks of 64 (results/accelerator): 1.3 and 1.6 times
# for the delta rule, 11 and 18 times for the local rule with a hidden layer, at B H = 16 and 64.
_SIZES, _LEAST_STEPS, _MOST_STEPS, _MOST_MEMORIES = ((64, 64), (64, 64, 64)), 2048, 8192, 64
_MOST_TOKENS = 64  # per chunk of XLA's program; a user chooses longer chunks to store fewer weights


class Rows(NamedTuple):
    """The tokens of a chunk, and their shares in the weights before and after each token; see `Mixture`.

    Attributes:
      keys: `[C, K]`.
      queries: `[C, K]`.
      targets: `[C, O]` per layer.
      start_before: the share of the weights at the chunk's beginning in the weights before each token, `[C, 1]`.
      start_after: the same after each token, `[C, 1]`.
      writes_before: the share of each write at rate one in the weights before each token, `[C, C]`.
      writes_after: the same after each token, `[C, C]`.
      start_at_end: the share of the weights at the chunk's beginning in the weights after the chunk, `[1, 1]`.
      writes_at_end: the share of each write in the weights after the chunk, `[C, 1]`.
    """

    keys: Array
    queries: Array
    targets: tuple[Array, ...]
    start_before: Array
    start_after: Array
    writes_before: Array
    writes_after: Array
    start_at_end: Array
    writes_at_end: Array


def check_kernel(memory: PairMemory, chunk: int, dtype: Any) -> None:
    """Raises ValueError unless the kernel can compute the chunks of a layer."""
    needs = memory_needs(memory, dtype)
    needs.append((chunk in (16, 32, 64), "chunk to be 16, 32 or 64", chunk))
    check_needs([*needs, size_need(memory, "a head", _KIBIBYTES * 16 // chunk, f" with {chunk=}")])


def wins(memory: PairMemory, chunk: int, dtype: Any, steps: int, memories: int) -> bool:
    """Returns whether the kernel supports a layer's memory, and was measured to be faster on a GPU for its sizes.

    Args:
      memory: the memory.
      chunk: tokens per chunk of XLA's program.
      dtype: dtype of the computation.
      steps: tokens `T`.
      memories: number of memories, B H.
    """
    measured = memory.network.sizes in _SIZES and _LEAST_STEPS <= steps <= _MOST_STEPS
    measured = measured and memories <= _MOST_MEMORIES and chunk <= _MOST_TOKENS
    return measured and all(met for met, _, _ in memory_needs(memory, dtype))


def run_sequence(
    chunked: ChunkedMemory, params: MemoryParams, state: ChunkState, tokens: Tokens, mixture: Mixture
) -> tuple[ChunkState, Array]:
    """Writes and reads the tokens of S whole chunks, as `ChunkedMemory.chunk` does chunk after chunk.

    Args:
      chunked: the memory, which passes `check_kernel`.
      params: slow parameters, leaves `[H, ...]`.
      state: the state before the tokens.
      tokens: fields `[B, H, S C, ...]`.
      mixture: the coefficients of the tokens' gates, leaves `[S, B, H, ...]`.

    Returns:
      The state after the tokens, and the answers `[B, H, S C, V]`, each read after the token's write.
    """
    sizes, chunks = tokens.keys.shape[:2], len(mixture.of_start)

    def split(x: Array) -> Array:
        return x.reshape(sizes[0] * sizes[1], chunks, chunked.size, -1)

    def shift(x: Array, first: int) -> Array:
        return jnp.pad(x[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)), constant_values=first)

    start, writes = (split(jnp.moveaxis(x, 0, 2)) for x in (mixture.of_start, mixture.of_writes))
    writes = writes * jnp.swapaxes(split(tokens.gates.rate), 2, 3)
    rows = Rows(
        keys=split(tokens.keys),
        queries=split(tokens.queries),
        targets=tuple(map(split, chunked.targets(params, tokens))),
        start_before=shift(start, 1),
        start_after=start,
        writes_before=shift(writes, 0),
        writes_after=writes,
        start_at_end=start[:, :, -1:],
        writes_at_end=jnp.swapaxes(writes[:, :, -1:], 2, 3),
    )
    weights = tuple(w.reshape(-1, *w.shape[2:]) for w in state.now.weights)
    assert isinstance(chunked.memory.rule, ErrorRule)  # by `check_kernel`
    weights, answers = run(chunked.memory.network, chunked.memory.rule, weights, rows)
    now = state.now._replace(weights=tuple(w.reshape(*sizes, *w.shape[1:]) for w in weights))
    return state._replace(now=now), answers.reshape(*sizes, chunks * chunked.size, -1)


def run(network: Network, rule: ErrorRule, weights: Weights, rows: Rows) -> tuple[Weights, Array]:
    """Returns the weights after all chunks, `[N, I, O]` per layer, and the answers `[N, S, C, V]`.

    It has a reverse-mode derivative of first order; other derivatives raise a TypeError.

    Args:
      network: the architecture, without biases.
      rule: the write rule.
      weights: `[N, I, O]` per layer.
      rows: leaves `[N, S, ., .]`.
    """
    return _run(network, rule, *reverse_only((weights, rows), ONE_DERIVATIVE))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(network: Network, rule: ErrorRule, weights: Weights, rows: Rows) -> tuple[Weights, Array]:
    return scan_on_chip(partial(_chunk, network, rule, _substitute), weights, rows)


def _forward(network: Network, rule: ErrorRule, weights: Weights, rows: Rows) -> tuple[Any, Any]:
    def step(weights: Weights, rows: Rows) -> tuple[Weights, tuple[Array, Weights]]:
        end, answers = _chunk(network, rule, _substitute, weights, rows)
        return end, (answers, weights)

    end, (answers, starts) = scan_on_chip(step, *constant((weights, rows), ONE_DERIVATIVE))
    return (end, answers), (starts, rows)


def _backward(network: Network, rule: ErrorRule, residuals: Any, cotangents: Any) -> tuple[Weights, Rows]:
    (starts, rows), (weights_ct, answers_ct) = constant((residuals, cotangents), ONE_DERIVATIVE)

    def step(weights_ct: Weights, at_chunk: Any) -> tuple[Weights, Rows]:
        start, rows, answers_ct = at_chunk
        _, vjp = jax.vjp(partial(_chunk, network, rule, _substitute_with_vjp), start, rows)
        return vjp((weights_ct, answers_ct))

    return scan_on_chip(step, weights_ct, (starts, rows, answers_ct), reverse=True)


_run.defvjp(_forward, _backward)


def _chunk(
    network: Network, rule: ErrorRule, substitute: Callable[..., Array], weights: Weights, rows: Rows
) -> tuple[Weights, Array]:
    """Returns the weights after a chunk and the answers `[C, V]`, for one memory with weights `[I, O]`."""
    hidden, x, pairs = network.depth - 1, rows.keys, []
    for layer, (w, target) in enumerate(zip(weights, rows.targets, strict=True)):
        act = network.activation if layer < hidden else _identity
        scale = rule.step_scale(x, target.shape[1])
        coupling = rows.writes_before * (x @ (scale * x).T)
        z = act(substitute(act, coupling, rows.start_before * (x @ w), target))
        pairs.append((x, scale * (z - target)))
        x = z
    z, end = rows.queries, []
    for layer, (w, (x, delta)) in enumerate(zip(weights, pairs, strict=True)):
        answers = rows.start_after * (z @ w) - (rows.writes_after * (z @ x.T)) @ delta
        z = network.activation(answers) if layer < hidden else answers
        end.append(rows.start_at_end * w - (rows.writes_at_end * x).T @ delta)
    return tuple(end), z


def _identity(x: Array) -> Array:
    return x


def _substitute(act: Callable[[Array], Array], below: Array, known: Array, target: Array) -> Array:
    """Returns a with a_t = known_t - sum_{s<t} N_ts (act(a_s) - T_s), `[C, O]`, N = `below`; see `substitution`."""

    def step(t: Array, a: Array) -> Array:
        return a - column(below, t) * row(act(a) - target, t)

    return jax.lax.fori_loop(0, known.shape[0], step, known)


_substitute_with_vjp = jax.custom_vjp(_substitute, nondiff_argnums=(0,))


def _substitute_forward(act: Any, below: Array, known: Array, target: Array) -> tuple[Array, Any]:
    a = _substitute(act, below, known, target)
    return a, (a, below, target)


def _substitute_backward(act: Any, residuals: Any, a_ct: Array) -> tuple[Array, Array, Array]:
    # With the cotangents alpha_t of a_t and lambda_t of e_t = act(a_t) - T_t:
    # alpha_t = a_ct_t + act'(a_t) lambda_t,    lambda_t = - sum_{s>t} N_st alpha_s
    a, below, target = residuals
    outputs, vjp = jax.vjp(act, a)
    (slopes,) = vjp(jnp.ones_like(a))
    above, size = below.T, a.shape[0]

    def step(count: Array, lambdas: Array) -> Array:
        t = size - 1 - count
        return lambdas - column(above, t) * row(a_ct + slopes * lambdas, t)

    lambdas = jax.lax.fori_loop(0, size, step, vary_alike((a, jnp.zeros_like(a)))[1])
    alphas = a_ct + slopes * lambdas
    return -alphas @ (outputs - target).T, alphas, -lambdas


_substitute_with_vjp.defvjp(_substitute_forward, _substitute_backward)
