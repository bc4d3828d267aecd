"""The state of a layer between two tokens, and its outputs.

Shape letters: `T` time steps, `B` examples, `D` features, `H` heads, `K` key features, `V` value features, `n` taps of
the convolution.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mnm_jax._params import leaf_names
from mnm_jax._precision import wide
from mnm_jax.memory._chunks.chunk import ChunkState

Array = jax.Array


class LayerCarry(NamedTuple):
    """The state of a layer between two tokens.

    Attributes:
      memory: the memories of all heads, leaves `[B, H, ...]`.
      position: number of tokens of the current chunk processed so far, `[B]`; None for an exact layer.
      window: keys, values and queries of the last tokens, `[B, n - 1, H (2 K + V)]`; None without a convolution.
    """

    memory: ChunkState
    position: Array | None
    window: Array | None


class LayerOutput(NamedTuple):
    """The outputs of a layer with `return_loss=True`.

    Attributes:
      features: the outputs, `[T, B, D]`; from `step`, `[B, D]`.
      loss_before: the loss of each token and head before the token's write, `[T, B, H]`; from `step`, `[B, H]`. It is
        the mean over features of (f(k_t; phi_{t-1}) - v_t)^2, and zero for padding.
    """

    features: Array
    loss_before: Array


def begin(start: Callable[..., LayerCarry], carry: LayerCarry | None, input_shape: tuple[int, ...]) -> LayerCarry:
    """Returns the carry, or `start(input_shape)` for None; raises ValueError for other shapes or dtypes."""
    if carry is None:
        return start(input_shape)
    expected = jax.eval_shape(lambda: start((1, *input_shape[1:])))  # the batch size may be symbolic
    remedy = "pass the carry of an earlier call of this layer with the same examples, or None for new sequences."
    structure: Any = jax.tree.structure(carry)
    if structure != jax.tree.structure(expected):
        raise ValueError(f"carry must be a LayerCarry of this layer, got {structure}: {remedy}")
    leaves = zip(leaf_names(expected), jax.tree.leaves(carry), jax.tree.leaves(expected), strict=True)
    for name, found, wanted in leaves:
        shape = (input_shape[0], *wanted.shape[1:])
        if (jnp.shape(found), jnp.result_type(found)) != (shape, wanted.dtype):
            raise ValueError(
                f"carry.{name} must be {wanted.dtype} of shape {shape} for inputs of B = {input_shape[0]} "
                f"examples, got {jnp.result_type(found)} of {jnp.shape(found)}: {remedy}"
            )
    return carry


def without_tokens(shape: tuple[int, ...], heads: int, dtype: DTypeLike, return_loss: bool) -> Any:
    """Returns the results of a call with inputs of `shape = (0, B, D)`."""
    outputs = jnp.zeros(shape, dtype)
    return LayerOutput(outputs, wide(jnp.zeros((*shape[:2], heads), dtype))) if return_loss else outputs
