"""Softmax attention, beside which the benchmarks measure the layer.

Shape letters: `T` time steps, `B` examples, `D` features.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax._linear import dot_general

Array = jax.Array

HEAD_SIZE = 64  # features of a head of the layer and of attention


class Attention(nnx.Module):
    """Causal softmax attention between two linear maps, `[T, B, D] -> [T, B, D]`."""

    def __init__(self, features: int, heads: int, *, dtype: Any, rngs: nnx.Rngs):
        self.heads, self.dtype = heads, dtype
        linear = functools.partial(nnx.Linear, use_bias=False, dot_general=dot_general, dtype=dtype, rngs=rngs)
        self.to_vectors = linear(features, 3 * heads * HEAD_SIZE)
        self.to_output = linear(heads * HEAD_SIZE, features)

    def __call__(self, inputs: Array, implementation: Any) -> Array:
        vectors = jnp.swapaxes(self.to_vectors(inputs), 0, 1)
        split = vectors.reshape(*vectors.shape[:2], 3, self.heads, HEAD_SIZE)
        queries, keys, values = (split[:, :, place] for place in range(3))
        read = jax.nn.dot_product_attention(
            queries,
            keys,
            values,
            is_causal=True,
            implementation=implementation,
        )
        return self.to_output(jnp.swapaxes(read.reshape(*read.shape[:2], -1), 0, 1))
