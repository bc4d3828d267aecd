"""Computes in at least single precision."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

Array = jax.Array


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Returns a floating-point dtype, or float32 for one of half precision."""
    return np.promote_types(dtype, np.float32)


def wide(x: Array) -> Array:
    """Returns an array in at least single precision, for numbers that half precision does not have."""
    return x.astype(wide_dtype(x.dtype))
