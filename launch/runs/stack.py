"""Stacks of layers as models, with a given number of parameters and of values of the state.

Shape letters: `T` time steps, `B` examples, `D` input features, `F` features of the stack, `H` heads, `S` values of the
state.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax import LSTMCell, Memory, NeuralMemoryLayer, WriteOptions, gradient_memory, local_memory, matrix_memory
from mnm_jax import unroll as run_cell
from mnm_jax._checks import check_sizes
from mnm_jax._linear import dot_general
from mnm_jax.layers._convolution import ShortConvolution

Array = jax.Array

CHUNK = 32  # tokens that a memory processes at once
STALE_CHUNK = 16  # its gradients are those at the chunk's beginning, so the chunk size is part of the model
STALE_RATE = 0.1  # relative to the other memories' largest rate; the step size "sum" diverges at higher rates

_linear = partial(nnx.Linear, use_bias=False, dot_general=dot_general)


class Convolution(nnx.Module):
    """A `ShortConvolution` over `taps` tokens, or the identity for one token."""

    def __init__(self, features: int, taps: int, *, rngs: nnx.Rngs):
        self.taps = nnx.data(ShortConvolution(features, taps, rngs=rngs) if taps > 1 else None)

    def initialize_carry(self, batch_size: int) -> Array | None:
        """Returns the tokens before the first, zeros `[B, taps - 1, F]`; None for one token."""
        return None if self.taps is None else self.taps.initialize_carry(batch_size, jnp.float32)

    def __call__(self, window: Array | None, inputs: Array, mask: Array | None) -> tuple[Array | None, Array]:
        """Returns the last tokens and the outputs of inputs `[T, B, F]`."""
        return (None, inputs) if self.taps is None or window is None else self.taps(window, inputs, mask)


class AttentionCache(NamedTuple):
    """The last W tokens of softmax attention.

    Attributes:
      window: the last tokens before the convolution, `[B, n - 1, 3 F]`; None without it.
      keys: `[B, W, H, F / H]`.
      values: `[B, W, H, F / H]`.
      valid: `[B, W]` bool, False = padding, or before the first token.
    """

    window: Array | None
    keys: Array
    values: Array
    valid: Array


class Attention(nnx.Module):
    """Causal softmax attention to the last `window` steps, without position embeddings.

    Queries, keys and values pass through a convolution, as in `NeuralMemoryLayer`.

    Args:
      features: `F`.
      heads: `H`.
      window: number of steps `W` kept between calls; within a call, a step attends to all earlier steps of the call.
      convolution: number of tokens `n` of the convolution.
      rngs: random keys.
    """

    def __init__(self, features: int, *, heads: int, window: int, convolution: int, rngs: nnx.Rngs):
        self.features, self.heads, self.window = features, heads, window
        self.to_vectors = _linear(features, 3 * features, rngs=rngs)
        self.convolution = Convolution(3 * features, convolution, rngs=rngs)
        self.to_output = _linear(features, features, rngs=rngs)

    def initialize_carry(self, input_shape: tuple[int, ...]) -> AttentionCache:
        """Returns an empty cache for inputs shaped `input_shape = (B, F)`."""
        size = input_shape[0], self.window
        empty = partial(jnp.zeros, (*size, self.heads, self.features // self.heads))
        window = self.convolution.initialize_carry(size[0])
        return AttentionCache(window=window, keys=empty(), values=empty(), valid=jnp.zeros(size, bool))

    def __call__(
        self, carry: AttentionCache | None, inputs: Array, *, mask: Array | None = None
    ) -> tuple[AttentionCache, Array]:
        """Returns the cache and the outputs of inputs `[T, B, F]`."""
        start = self.initialize_carry(inputs.shape[1:]) if carry is None else carry
        window, vectors = self.convolution(start.window, self.to_vectors(inputs), mask)
        split = vectors.reshape(*vectors.shape[:2], 3, self.heads, self.features // self.heads).swapaxes(0, 1)
        queries, keys, values = (split[:, :, place] for place in range(3))
        valid = jnp.ones(keys.shape[:2], bool) if mask is None else mask.T
        new = AttentionCache(window=window, keys=keys, values=values, valid=valid)
        joined = jax.tree.map(lambda old, x: jnp.concatenate([old, x], axis=1), start, new)._replace(window=window)
        seen = new if carry is None else joined  # an empty cache is left out
        steps, before = keys.shape[1], seen.keys.shape[1] - keys.shape[1]
        causal = jnp.arange(before + steps)[None] <= before + jnp.arange(steps)[:, None]
        allowed = causal[None, None] & seen.valid[:, None, None]
        read = jax.nn.dot_product_attention(queries, seen.keys, seen.values, mask=allowed)
        cache = AttentionCache(window, *(x[:, -self.window :] for x in joined[1:]))
        return cache, self.to_output(read.reshape(*read.shape[:2], self.features).swapaxes(0, 1))


class LSTMMixer(nnx.Module):
    """A convolution, an LSTM with `hidden_features` units and a linear map."""

    def __init__(self, features: int, hidden_features: int, *, convolution: int, rngs: nnx.Rngs):
        self.convolution = Convolution(features, convolution, rngs=rngs)
        self.cell = LSTMCell(features, hidden_features, rngs=rngs)
        self.to_output = _linear(hidden_features, features, rngs=rngs)

    def initialize_carry(self, input_shape: tuple[int, ...]) -> tuple[Array | None, Any]:
        """Returns the carry at the start of sequences of inputs shaped `input_shape = (B, F)`."""
        return self.convolution.initialize_carry(input_shape[0]), self.cell.initialize_carry(input_shape)

    def __call__(self, carry: Any, inputs: Array, *, mask: Array | None = None) -> tuple[Any, Array]:
        """Returns the carry and the outputs of inputs `[T, B, F]`."""
        window, state = self.initialize_carry(inputs.shape[1:]) if carry is None else carry
        window, mixed = self.convolution(window, inputs, mask)
        state, hidden = run_cell(self.cell, state, mixed, mask=mask)
        return (window, state), self.to_output(hidden)


class Block(nnx.Module):
    """Computes x <- x + mixer(norm(x)), then x <- x + W_3 (silu(W_1 norm(x)) o W_2 norm(x)).

    Args:
      features: `F`.
      mixer: the mixer over time.
      parameters: parameters of the block; the feed-forward part is as wide as they allow.
      rngs: random keys.

    Raises:
      ValueError: if the mixer alone has more parameters.
    """

    def __init__(self, features: int, mixer: Any, *, parameters: int, rngs: nnx.Rngs):
        used = 2 * features + sum(leaf.size for leaf in jax.tree.leaves(nnx.state(mixer, nnx.Param)))
        width = (parameters - used) // (3 * features)
        if width < 1:
            raise ValueError(f"block_parameters must be >= {used + 3 * features} for this mixer, got {parameters}.")
        self.mixer = mixer
        self.norm, self.feed_norm = nnx.RMSNorm(features, rngs=rngs), nnx.RMSNorm(features, rngs=rngs)
        self.up = _linear(features, 2 * width, rngs=rngs)
        self.down = _linear(width, features, rngs=rngs)

    def __call__(self, carry: Any, x: Array, mask: Array | None) -> tuple[Any, Array]:
        """Returns the mixer's carry and the outputs of inputs `[T, B, F]`."""
        carry, mixed = self.mixer(carry, self.norm(x), mask=mask)
        x = x + mixed
        gate, value = jnp.split(self.up(self.feed_norm(x)), 2, axis=-1)
        return carry, x + self.down(jax.nn.silu(gate) * value)


class LayerStack(nnx.Module):
    """A linear map, blocks of a mixer and a feed-forward part, and a normalisation: `[T, B, D] -> [T, B, F]`.

    Args:
      in_features: `D`.
      features: `F`.
      make_mixer: returns a mixer from random keys.
      layers: number of blocks.
      block_parameters: parameters of each block.
      rngs: random keys.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        make_mixer: Callable[[nnx.Rngs], Any],
        *,
        layers: int,
        block_parameters: int,
        rngs: nnx.Rngs,
    ):
        self.in_features = in_features
        self.out_features = features
        self.to_features = _linear(in_features, features, rngs=rngs)
        blocks = [Block(features, make_mixer(rngs), parameters=block_parameters, rngs=rngs) for _ in range(layers)]
        self.blocks = nnx.List(blocks)
        self.norm = nnx.RMSNorm(features, rngs=rngs)

    def initialize_carry(self, input_shape: tuple[int, ...]) -> tuple[Any, ...]:
        """Returns the carries of all mixers at the start of sequences of inputs shaped `input_shape = (B, D)`."""
        return tuple(block.mixer.initialize_carry((input_shape[0], self.out_features)) for block in self.blocks)

    def __call__(
        self, carry: tuple[Any, ...] | None, inputs: Array, *, mask: Array | None = None
    ) -> tuple[tuple[Any, ...], Array]:
        """Returns the carries and the outputs `[T, B, F]` of inputs `[T, B, D]`; the carry None begins sequences."""
        x, carries = self.to_features(inputs), []
        for block, old in zip(self.blocks, (None,) * len(self.blocks) if carry is None else carry, strict=True):
            new, x = block(old, x, mask)
            carries.append(new)
        return tuple(carries), self.norm(x)

    def step(self, carry: tuple[Any, ...], inputs: Array) -> tuple[tuple[Any, ...], Array]:
        """Returns the carries and the outputs after one step with inputs `[B, D]`."""
        carry, outputs = self(carry, inputs[None])
        return carry, outputs[0]


_UNIT_KEYS = WriteOptions(key_norm="l2")
_GATED = WriteOptions(key_norm="l2", forget=True)
_TITANS = WriteOptions(key_norm="l2", forget=True, momentum=True)


def _matrix(state: int, rule: str, options: WriteOptions) -> Memory:
    """Returns a memory that is a square matrix of `state` values."""
    size = math.isqrt(state)
    return matrix_memory(size, size, rule, options=options)


def _normalised(state: int) -> Memory:
    """Returns a memory that is a square matrix, whose writes are divided by the squared length of the key."""
    size = math.isqrt(state)
    return gradient_memory(size, size, hidden_sizes=(), learn_initial=False, initial_gain=0.0)


def _deep(state: int, make: Callable[..., Memory], **settings: Any) -> Memory:
    """Returns a memory with one hidden layer, twice as wide as keys and values."""
    size = math.isqrt(state)
    return make(size // 2, size // 2, hidden_sizes=(size,), options=_UNIT_KEYS, **settings)


def _titans(state: int) -> Memory:
    """Returns a memory with one hidden layer whose weights and momentum have `state` values together."""
    size = math.isqrt(state) // 2
    return gradient_memory(size, size, hidden_sizes=(size,), step_size="sum", options=_TITANS)


# Memories by name; each takes the number of values of its state, an even square.
MEMORIES: Mapping[str, Callable[[int], Memory]] = {
    "hebbian": partial(_matrix, rule="hebbian", options=_UNIT_KEYS),
    "delta": partial(_matrix, rule="delta", options=_UNIT_KEYS),
    "delta-normalised": _normalised,
    "delta-gated": partial(_matrix, rule="delta", options=_GATED),
    "deep-before": partial(_deep, make=local_memory),
    "deep-after": partial(_deep, make=local_memory, write_through=True),
    "deep-gradient": partial(_deep, make=gradient_memory),
    "deep-stale": _titans,
}


def _check_state(mixer: str, state: int, features: int) -> None:
    """Raises ValueError unless a mixer can have exactly `state` values."""
    if mixer in MEMORIES:
        if math.isqrt(state) ** 2 != state or state % 2:
            raise ValueError(f"state must be the square of an even number for {mixer}, such as 1024, got {state}.")
        return
    unit = 2 if mixer == "lstm" else 2 * features
    if state % unit:
        raise ValueError(f"state must be a multiple of {unit} for {mixer} (two vectors), got {state}.")


def layer_stack(mixer: str) -> Callable[..., LayerStack]:
    """Returns the factory of the stacks of a mixer.

    Args:
      mixer: a name of `MEMORIES`, "lstm" or "attention". `state` is the number of values that a layer keeps between
        tokens, except the window of the convolution: weights and momentum of a memory, both vectors of an LSTM, and
        keys and values of attention, whose window follows from it. Within a chunk, which their settings define,
        "deep-gradient" and "deep-stale" also keep the weights of its beginning, and "deep-gradient" a correction.
    """

    def make(
        *,
        features: int,
        stack_features: int,
        state: int,
        block_parameters: int,
        rngs: nnx.Rngs,
        layers: int = 2,
        convolution: int = 4,
        max_rate: float = 1.0,
        hard_rate: bool = False,
    ) -> LayerStack:
        check_sizes(stack_features=stack_features, state=state, block_parameters=block_parameters, layers=layers)
        _check_state(mixer, state, stack_features)

        def make_mixer(rngs: nnx.Rngs) -> Any:
            if mixer == "attention":
                window = state // (2 * stack_features)
                return Attention(stack_features, heads=2, window=window, convolution=convolution, rngs=rngs)
            if mixer == "lstm":
                return LSTMMixer(stack_features, state // 2, convolution=convolution, rngs=rngs)
            stale = mixer == "deep-stale"
            return NeuralMemoryLayer(
                stack_features,
                MEMORIES[mixer](state),
                chunk=STALE_CHUNK if stale else CHUNK,
                stale=stale,
                convolution=convolution,
                max_rate=max_rate * (STALE_RATE if stale else 1),
                hard_rate=hard_rate,
                rngs=rngs,
            )

        return LayerStack(
            features, stack_features, make_mixer, layers=layers, block_parameters=block_parameters, rngs=rngs
        )

    return make
