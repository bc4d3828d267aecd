"""Computes in at least single precision."""

import jax
import jax.numpy as jnp

Array = jax.Array


def wide(x: Array) -> Array:
    """Returns an array in at least single precision, for numbers that half precision does not have."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)
