"""Computes in at least single precision."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

Array = jax.Array


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Returns a floating-point dtype, or float32 for one of half precision."""
    return np.promote_types(dtype, np.float32)


def common_dtype(a: DTypeLike, b: DTypeLike) -> jnp.dtype:
    """Returns the smallest dtype with the numbers of both, float32 for float16 and bfloat16."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def wide(x: Array) -> Array:
    """Returns an array in at least single precision, for numbers that half precision does not have."""
    return x.astype(wide_dtype(x.dtype))
