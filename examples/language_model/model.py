"""Language models that differ in one layer: a neural memory, an LSTM, or attention.

Every layer maps a carry and inputs to the next carry and outputs, so that a text can be read in windows.

Shape letters: `T` characters, `B` texts, `D` features.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from examples.language_model.text import ALPHABET
from mnm_jax import LSTMCell, NeuralMemoryLayer, WriteOptions, local_memory, unroll

Array = jax.Array
_HEADS = 4


class Memory(nnx.Module):
    """`NeuralMemoryLayer` with memories of the local rule.

    Args:
      features: `D`.
      heads: number of memories; each maps D / heads numbers to as many.
      hidden_layers: number of hidden layers of a memory; 0 for a matrix.
      write_through: of `local_memory`.
      pre_activation: of `local_memory`.
      key_norm: of `WriteOptions`.
      forget: of `WriteOptions`.
      convolution: number of characters on which keys, values and queries depend.
      chunk: number of characters that are processed at once; it changes only the speed.
      rngs: random keys.
      **options: further options of `NeuralMemoryLayer`.
    """

    def __init__(
        self,
        features: int,
        *,
        heads: int = _HEADS,
        hidden_layers: int = 1,
        write_through: bool = True,
        pre_activation: bool = True,
        key_norm: str | None = "l2",
        forget: bool = True,
        convolution: int = 4,
        chunk: int = 16,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        size = features // heads
        memory = local_memory(
            size,
            size,
            hidden_sizes=(size,) * hidden_layers,
            write_through=write_through,
            pre_activation=pre_activation,
            options=WriteOptions(key_norm=key_norm, forget=forget),
        )
        self.layer = NeuralMemoryLayer(
            features, memory, heads=heads, convolution=convolution, chunk=chunk, rngs=rngs, **options
        )

    def initialize_carry(self, shape: tuple[int, int]) -> Any:
        return self.layer.initialize_carry(shape)

    def __call__(self, carry: Any, x: Array) -> tuple[Any, Array]:
        return self.layer(carry, x)


class LSTM(nnx.Module):
    """An LSTM as wide as its input."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.cell = LSTMCell(features, features, rngs=rngs)

    def initialize_carry(self, shape: tuple[int, int]) -> Any:
        return self.cell.initialize_carry(shape)

    def __call__(self, carry: Any, x: Array) -> tuple[Any, Array]:
        return unroll(self.cell, carry, x)


class Attention(nnx.Module):
    """Causal attention to the characters of the same window; its carry is None."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.to_vectors = nnx.Linear(features, 3 * features, use_bias=False, rngs=rngs)
        self.to_output = nnx.Linear(features, features, use_bias=False, rngs=rngs)

    def initialize_carry(self, shape: tuple[int, int]) -> None:
        return None

    def __call__(self, carry: None, x: Array) -> tuple[None, Array]:
        vectors = self.to_vectors(x).reshape(*x.shape[:2], 3, _HEADS, -1)
        query, key, value = jnp.moveaxis(vectors, (1, 0), (0, 1)).swapaxes(0, 2).swapaxes(1, 2)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)  # [B, T, heads, D / heads]
        return None, self.to_output(mixed.swapaxes(0, 1).reshape(x.shape))


MODELS = {"memory": Memory, "lstm": LSTM, "transformer": Attention}


class Shift(nnx.Module):
    """Adds to the features of every character the features of the preceding ones, times learned factors.

        y_t = x_t + sum_{0 < j < n} c_j o x_{t-j}

    Args:
      features: `D`.
      characters: number of characters `n`, the character itself included.
      rngs: random keys.
    """

    def __init__(self, features: int, characters: int, *, rngs: nnx.Rngs):
        shape = (characters - 1, features)
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-1.0) if shape[0] else jnp.zeros(shape))

    def initialize_carry(self, shape: tuple[int, int]) -> Array:
        return jnp.zeros((len(self.kernel[...]), *shape))

    def __call__(self, carry: Array, x: Array) -> tuple[Array, Array]:
        tokens = jnp.concatenate([carry, x])
        shifted = (tokens[j : j + len(x)] * part[None, None] for j, part in enumerate(self.kernel[...]))
        return tokens[len(x) :], sum(shifted, x)


class Layer(nnx.Module):
    """Computes x + mixer(norm(x)), then x + feed-forward(shift(norm(x))).

    The width of the feed-forward part is such that all models have the same number of parameters.

    Args:
      mixer: the layer that mixes time steps.
      features: `D`.
      shift: number of characters that the feed-forward part receives.
      positions: number of parameters of position embeddings per layer.
      rngs: random keys.
    """

    def __init__(self, mixer: nnx.Module, features: int, *, shift: int, positions: int, rngs: nnx.Rngs):
        self.mixer, self.shift = mixer, Shift(features, shift, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(features, rngs=rngs) for _ in range(2)])
        # 12.43 D^2 parameters of mixer, positions and feed-forward part, per layer: 433,000 in two layers of D = 128
        width = (int(12.43 * features**2) - positions - count_parameters(mixer)) // (2 * features + 1)
        self.up, self.down = nnx.Linear(features, width, rngs=rngs), nnx.Linear(width, features, rngs=rngs)

    def __call__(self, carry: Any, x: Array) -> tuple[Any, Array]:
        mixer, mixed = self.mixer(carry[0], self.norms[0](x))
        x = x + mixed
        shift, local = self.shift(carry[1], self.norms[1](x))
        return (mixer, shift), x + self.down(jax.nn.gelu(self.up(local)))

    def initialize_carry(self, shape: tuple[int, int]) -> Any:
        return self.mixer.initialize_carry(shape), self.shift.initialize_carry(shape)


class LanguageModel(nnx.Module):
    """Maps characters `[T, B]` to logits of the next characters, `[T, B, characters]`.

    Args:
      name: one of MODELS, which have equally many parameters to within one per cent.
      features: `D`.
      layers: number of layers.
      steps: the longest `T`, for the position embeddings of attention.
      shift: number of characters that every feed-forward part receives.
      options: options of the layer, for comparisons; see `Memory`.
      rngs: random keys of the initial values.
    """

    def __init__(
        self,
        name: str,
        *,
        features: int,
        layers: int,
        steps: int,
        shift: int = 1,
        options: dict[str, Any] | None = None,
        rngs: nnx.Rngs,
    ):
        self.embedding = nnx.Embed(len(ALPHABET), features, rngs=rngs)
        positions = 0.02 * jax.random.normal(rngs.params(), (steps, 1, features))
        self.positions = nnx.data(nnx.Param(positions) if name == "transformer" else None)
        share = positions.size // layers if name == "transformer" else 0
        self.layers = nnx.List(
            [
                Layer(
                    MODELS[name](features, **(options or {}), rngs=rngs),
                    features,
                    shift=shift,
                    positions=share,
                    rngs=rngs,
                )
                for _ in range(layers)
            ]
        )
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.readout = nnx.Linear(features, len(ALPHABET), rngs=rngs)

    def initialize_carry(self, batch_size: int) -> tuple[Any, ...]:
        """Returns the carry at the beginning of texts, one entry per layer."""
        return tuple(layer.initialize_carry((batch_size, self.norm.num_features)) for layer in self.layers)

    def __call__(self, carry: tuple[Any, ...] | None, characters: Array) -> tuple[tuple[Any, ...], Array]:
        """Returns the carry after the characters, and the logits; a carry of None begins new texts."""
        carry = self.initialize_carry(characters.shape[1]) if carry is None else carry
        x = self.embedding(characters)
        if self.positions is not None:  # attention by itself ignores the order
            x = x + self.positions[: len(x)]
        after = []
        for layer, before in zip(self.layers, carry, strict=True):
            before, x = layer(before, x)
            after.append(before)
        return tuple(after), self.readout(self.norm(x))


def count_parameters(module: nnx.Module) -> int:
    """Returns the number of learned values."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
