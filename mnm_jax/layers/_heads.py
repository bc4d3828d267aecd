"""The memories of all heads: they write and read the tokens of a layer, in chunks.

Shape letters: `T` time steps, `B` examples, `H` heads (one memory each), `K` key features, `V` value features, `C`
tokens of a chunk.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from mnm_jax._accelerator import on_measured_gpu
from mnm_jax._checks import check_finite
from mnm_jax._masking import select
from mnm_jax._precision import wide
from mnm_jax.memory import Memory, MemoryParams
from mnm_jax.memory._chunks.chunk import ChunkedMemory, ChunkState
from mnm_jax.memory._chunks.mixture import Gates, Mixture, Tokens, mix
from mnm_jax.memory._options import FORGET_LITTLE, gate_biases, normalise

Array = jax.Array

_EPSILON = 1e-6  # added to the mean square of a read by `output_norm`
_STRETCH = 0.1  # distance by which `hard_rate` stretches the sigmoid beyond 0 and 1, as the hard concrete distribution
_HARD_BIAS = 1.5  # initial bias with `hard_rate`, 0.88 of the largest rate; from 0, training closed some seeds' gates


class _Chunk(NamedTuple):
    """Tokens of a chunk; of several chunks with a leading axis.

    Attributes:
      vectors: keys, values and queries, `[C, B, H (2 K + V)]`.
      gates: `[B, H, C]` each.
      mixture: the coefficients of the chunk, leaves `[B, H, ...]`.
    """

    vectors: Array
    gates: Gates
    mixture: Mixture


class Heads(NamedTuple):
    """The memories of all heads.

    Attributes:
      chunked: the memory.
      params: its slow parameters, leaves `[H, ...]`.
      number: number of heads `H`.
      max_rate: the write rate of the gate 1.
      hard_rate: whether the gate of the write rate reaches 0 and 1.
      backend: "pallas" for the kernel; "auto" for the kernel where it was measured to be faster.
    """

    chunked: ChunkedMemory
    params: MemoryParams
    number: int
    max_rate: float
    hard_rate: bool
    backend: str

    def check_run(self, reset: Array | None, old: bool) -> None:
        """Raises ValueError for a reset or losses (`old`) that the chunks do not support."""
        if reset is not None and not self.chunked.exact:
            raise ValueError(
                "reset needs a layer whose result does not depend on the division into chunks, got one with the rule "
                f"{type(self.chunked.memory.rule).__name__} and chunk={self.chunked.size}: call the layer once per "
                "sequence, pass reset to step, or set chunk=1."
            )
        for name, is_set in (("reset", reset is not None), ("return_loss", old)):
            if is_set and self.backend == "pallas":
                raise ValueError(f"{name} needs backend='xla', got 'pallas': the kernel does not support it.")

    def run(
        self, memory: ChunkState, vectors: Array, gates: Gates, ends: Array | None = None, *, old: bool
    ) -> tuple[ChunkState, tuple[Array, ...]]:
        """Returns the memories after a sequence, all answers `[T, B, H V]`, and with `old` the losses `[T, B, H]`.

        Args:
          memory: the memories before the sequence.
          vectors: keys, values and queries, `[T, B, H (2 K + V)]`.
          gates: `[B, H, T]` each.
          ends: whether the chunk of each example ends after each C tokens, `[T / C, B]`; None if it always does.
          old: whether to compute losses.
        """
        steps = vectors.shape[0]
        if export.is_symbolic_dim(steps):
            raise ValueError(f"a layer needs a number of tokens, got the symbolic size {steps}: use step, or fix T.")
        can_choose = self.backend == "auto" and not old and ends is None and gates.reset is None
        chunked, by_kernel = self._choose(vectors, can_choose)
        size = chunked.size
        whole = steps - steps % size
        coefficients = jax.vmap(partial(mix, momentum="momentum" in chunked.memory.gates))
        # The forward pass stores `vectors`, the memories between chunks and the coefficients of all chunks, which one
        # loop over C tokens computes at once. In the backward pass, computing a chunk and its tokens again is faster
        # than storing and loading the residuals.
        run_chunk = jax.checkpoint(partial(self._run_chunk, chunked, old=old))

        def run_and_restart(memory: ChunkState, now: tuple[_Chunk, Any]) -> tuple[ChunkState, tuple[Array, ...]]:
            chunk, ends = now
            memory, reads = run_chunk(memory, chunk)
            restarted = chunked.restart(memory)
            return restarted if ends is None else select(ends, restarted, memory), reads

        parts: list[tuple[Array, ...]] = []
        if whole:
            by_chunk = jax.tree.map(lambda x: _split(x[:, :, :whole], size), gates)
            mixture = jax.vmap(coefficients)(by_chunk)
            if by_kernel:
                tokens = self._tokens(vectors[:whole], jax.tree.map(lambda x: x[:, :, :whole], gates))
                memory, read = load_kernel().run_sequence(chunked, self.params, memory, tokens, mixture)
                parts.append((_join_heads(read),))
            else:
                chunks = _Chunk(vectors[:whole].reshape(whole // size, size, *vectors.shape[1:]), by_chunk, mixture)
                memory, reads = jax.lax.scan(run_and_restart, memory, (chunks, ends))
                parts.append(jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), reads))
        if steps > whole:
            rest = jax.tree.map(lambda x: x[:, :, whole:], gates)
            memory, reads = run_chunk(memory, _Chunk(vectors[whole:], rest, coefficients(rest)))
            parts.append(reads)
        return memory, tuple(jnp.concatenate(part) for part in zip(*parts, strict=True))

    def _choose(self, vectors: Array, can_choose: bool) -> tuple[ChunkedMemory, bool]:
        """Returns the memory in chunks of the chosen size, and whether the kernel runs them."""
        if not (can_choose and on_measured_gpu(vectors)):
            return self.chunked, self.backend == "pallas" and vectors.shape[1] > 0
        steps, memories = len(vectors), self.number * vectors.shape[1]
        if not load_kernel().wins(self.chunked.memory, self.chunked.size, vectors.dtype, steps, memories):
            return self.chunked, False
        # Measured in these chunks; the rules of the kernel are exact, so the results are the same.
        return dataclasses.replace(self.chunked, size=load_kernel().CHUNK), True

    def _run_chunk(
        self, chunked: ChunkedMemory, memory: ChunkState, chunk: _Chunk, *, old: bool
    ) -> tuple[ChunkState, tuple[Array, ...]]:
        """Returns the memories after a chunk, and its answers and losses, as `run` does."""
        tokens = self._tokens(chunk.vectors, chunk.gates)
        memory, answers = chunked.chunk(self.params, memory, tokens, chunk.mixture, old=old)
        return memory, _reads(answers, tokens.values)

    def step(
        self, memory: ChunkState, vectors: Array, gates: Gates, *, old: bool
    ) -> tuple[ChunkState, tuple[Array, ...]]:
        """Returns the memories after one token, and its answers and losses, as `run` does."""
        tokens = self._tokens(vectors, gates)
        memory, answers = self.chunked.step(self.params, memory, tokens, old=old)
        return memory, _reads(answers, tokens.values)

    def gates(self, logits: Array, mask: Array | None = None, reset: Array | None = None) -> Gates:
        """Returns the gates of logits `[T, B, H (1 + gates)]`, leaves `[B, H, T]` in at least single precision."""
        mask = jnp.ones(logits.shape[:2], bool) if mask is None else mask
        gates = jax.nn.sigmoid(self._by_head(wide(logits)))
        rate = jnp.clip((1 + 2 * _STRETCH) * gates[..., 0] - _STRETCH, 0, 1) if self.hard_rate else gates[..., 0]
        counts = jnp.broadcast_to(mask.T[:, None], gates.shape[:-1]).astype(gates.dtype)
        named = {name: gates[..., 1 + place] for place, name in enumerate(self.chunked.memory.gates)}
        return Gates(
            rate=rate if self.max_rate == 1 else self.max_rate * rate,
            decay=1 - named["forget"] if "forget" in named else jnp.ones_like(counts),
            momentum=named.get("momentum", jnp.zeros_like(counts)),
            mask=counts,
            reset=None if reset is None else jnp.broadcast_to(reset.T[:, None], counts.shape),
        ).masked()

    def _tokens(self, vectors: Array, gates: Gates) -> Tokens:
        """Returns the tokens of `vectors [T, B, H (2 K + V)]`, leaves `[B, H, T, ...]`."""
        memory = self.chunked.memory
        key_size, value_size, how = memory.key_size, memory.value_size, memory.options.key_norm
        keys, values, queries = jnp.split(self._by_head(vectors), [key_size, key_size + value_size], axis=-1)
        return Tokens(keys=normalise(keys, how), values=values, queries=normalise(queries, how), gates=gates)

    def _by_head(self, x: Array) -> Array:
        """Returns `[T, B, H X]` as `[B, H, T, X]`."""
        return jnp.moveaxis(x.reshape(*x.shape[:2], self.number, x.shape[2] // self.number), 0, 2)


def begin_biases(memory: Memory, forget_bias: float | None, *, hard_rate: bool) -> list[float]:
    """Returns the initial biases of the gates of a head; raises ValueError for a bias of a gate that is not there."""
    if forget_bias is not None:
        check_finite(forget_bias=forget_bias)
        if "forget" not in memory.gates:
            raise ValueError(
                f"forget_bias needs a memory with WriteOptions(forget=True), got {forget_bias}: leave it out."
            )
    return gate_biases(memory.gates, FORGET_LITTLE if forget_bias is None else forget_bias, _HARD_BIAS * hard_rate)


def load_kernel() -> Any:
    """Returns the module of the kernel, whose import loads Pallas."""
    from mnm_jax.memory._kernels import chunks

    return chunks


def normalise_reads(reads: Array, gain: Array) -> Array:
    """Returns reads `[T, B, H V]`, divided by the root mean square of each head's read, times a gain `[V]`."""
    by_head = wide(reads.reshape(*reads.shape[:2], reads.shape[2] // len(gain), len(gain)))
    size = jnp.mean(jnp.square(by_head), -1, keepdims=True) + _EPSILON
    normed = gain[None, None, None].astype(by_head.dtype) * by_head * jax.lax.rsqrt(size)
    return normed.reshape(reads.shape).astype(reads.dtype)


def _reads(answers: tuple[Array, ...], values: Array) -> tuple[Array, ...]:
    """Returns the answers to queries `[T, B, H V]`, and the losses `[T, B, H]` of answers to write keys, if given.

    Args:
      answers: to queries and, for losses, to write keys; `[B, H, T, V]` each.
      values: the values to write, `[B, H, T, V]`.
    """
    losses = (jnp.mean(jnp.square(wide(old - values)), -1) for old in answers[1:])
    return _join_heads(answers[0]), *(jnp.moveaxis(loss, 2, 0) for loss in losses)


def _join_heads(x: Array) -> Array:
    """Returns `[B, H, T, V]` as `[T, B, H V]`."""
    joined = jnp.moveaxis(x, 2, 0)
    return joined.reshape(*joined.shape[:2], joined.shape[2] * joined.shape[3])


def _split(x: Array, size: int) -> Array:
    """Returns `[B, H, T]` as `[T / C, B, H, C]`, for chunks of `C = size` tokens."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], x.shape[2] // size, size), 2, 0)
