"""The product of a linear map over a sequence.

Shape letters: `T` steps, `B` examples, `I`/`O` inputs and outputs of a map.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Array = jax.Array


def dot_general(x: Array, kernel: Array, dimension_numbers: Any, **options: Any) -> Array:
    """Returns x W for inputs `[..., I]` and a kernel `[I, O]`: the `dot_general` of an `nnx.Linear`.

    On a CPU the gradient of the kernel is a sum over one axis, `T` and `B` together. For a sum over two axes XLA
    transposes the cotangents first, which can take longer than the product.
    """
    # A sum over one axis would gather a batch that the compiler divides over devices. On a CPU the library divides
    # batches by `jax.shard_map` instead, so that such a sum is local.
    divided = any(jax.typeof(x).sharding.spec) or any(option is not None for option in options.values())
    if x.ndim < 3 or divided or jax.default_backend() != "cpu":
        return jax.lax.dot_general(x, kernel, dimension_numbers, **options)
    # Compiled, since a `jax.shard_map` that is not compiled refuses symbolic zeros.
    return jax.jit(_product, inline=True)(x, kernel)


@jax.custom_jvp
def _product(x: Array, kernel: Array) -> Array:
    return x @ kernel


@partial(_product.defjvp, symbolic_zeros=True)
def _product_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    product = _product(x, kernel)
    tangent = jnp.zeros_like(product) if isinstance(x_tangent, SymbolicZero) else x_tangent @ kernel
    if not isinstance(kernel_tangent, SymbolicZero):
        flat = x.reshape(-1, x.shape[-1]) @ kernel_tangent
        tangent = tangent + flat.reshape(product.shape)
    return product, tangent
