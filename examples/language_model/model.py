"""Language models that differ in one layer: a neural memory (with or without convolution), an LSTM, or attention.

Shape letters: `T` characters, `B` texts, `D` features.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from examples.language_model.text import ALPHABET
from mnm_jax import LSTMCell, NeuralMemoryLayer, WriteOptions, local_memory, unroll

Array = jax.Array
MODELS = ("memory", "memory-convolution", "lstm", "transformer")
_HEADS = 4


class Memory(nnx.Module):
    """`NeuralMemoryLayer` with two-layer memories of the local rule and a forget gate."""

    def __init__(self, features: int, rngs: nnx.Rngs, convolution: int = 1):
        size = features // _HEADS
        options = WriteOptions(key_norm="l2", forget=True)
        memory = local_memory(size, size, hidden_sizes=(size,), options=options)
        self.layer = NeuralMemoryLayer(features, memory, heads=_HEADS, chunk=32, convolution=convolution, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns the outputs `[T, B, D]` of inputs `[T, B, D]`."""
        return self.layer(None, x)[1]


class LSTM(nnx.Module):
    """An LSTM as wide as its input."""

    def __init__(self, features: int, rngs: nnx.Rngs):
        self.cell = LSTMCell(features, features, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return unroll(self.cell, None, x)[1]


class Attention(nnx.Module):
    """Causal attention."""

    def __init__(self, features: int, rngs: nnx.Rngs):
        self.to_vectors = nnx.Linear(features, 3 * features, use_bias=False, rngs=rngs)
        self.to_output = nnx.Linear(features, features, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        vectors = self.to_vectors(x).reshape(*x.shape[:2], 3, _HEADS, -1)
        query, key, value = jnp.moveaxis(vectors, (1, 0), (0, 1)).swapaxes(0, 2).swapaxes(1, 2)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)  # [B, T, heads, D / heads]
        return self.to_output(mixed.swapaxes(0, 1).reshape(x.shape))


_MIXERS: dict[str, Callable] = {
    "memory": Memory,
    "memory-convolution": partial(Memory, convolution=4),
    "lstm": LSTM,
    "transformer": Attention,
}
# Widths of the layers' feed-forward parts, which give all models the same number of parameters to within one per cent.
_WIDTHS = {"memory": 468, "memory-convolution": 462, "lstm": 280, "transformer": 473}


class Layer(nnx.Module):
    """Computes x + mixer(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, kind: str, features: int, rngs: nnx.Rngs):
        width = _WIDTHS[kind] * features // 128
        self.mixer = _MIXERS[kind](features, rngs)
        self.norms = nnx.List([nnx.LayerNorm(features, rngs=rngs) for _ in range(2)])
        self.up, self.down = nnx.Linear(features, width, rngs=rngs), nnx.Linear(width, features, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.mixer(self.norms[0](x))
        return x + self.down(jax.nn.gelu(self.up(self.norms[1](x))))


class LanguageModel(nnx.Module):
    """Maps characters `[T, B]` to logits of the next characters, `[T, B, characters]`.

    Args:
      name: one of MODELS.
      features: `D`.
      layers: number of layers.
      steps: the longest `T`, for the position embeddings of attention.
      rngs: random keys of the initial values.
    """

    def __init__(self, name: str, *, features: int, layers: int, steps: int, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(len(ALPHABET), features, rngs=rngs)
        positions = 0.02 * jax.random.normal(rngs.params(), (steps, 1, features))
        self.positions = nnx.data(nnx.Param(positions) if name == "transformer" else None)
        self.layers = nnx.List([Layer(name, features, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.readout = nnx.Linear(features, len(ALPHABET), rngs=rngs)

    def __call__(self, characters: Array) -> Array:
        x = self.embedding(characters)
        if self.positions is not None:  # attention by itself ignores the order
            x = x + self.positions[: len(x)]
        for layer in self.layers:
            x = layer(x)
        return self.readout(self.norm(x))
