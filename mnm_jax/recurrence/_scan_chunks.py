"""A scan over chunks of steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def scan_chunks(chunk: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, every: int) -> tuple[Any, Any]:
    """Scans over chunks of `every` steps of a sequence `[T, ...]`; the remaining steps are one shorter chunk.

    `chunk` is `(carry, xs of a chunk) -> (carry, outputs of the chunk)`; the result equals that of one `lax.scan`.
    """
    length = jax.tree.leaves(xs)[0].shape[0]
    whole = length - length % every
    head = jax.tree.map(lambda x: x[:whole].reshape(whole // every, every, *x.shape[1:]), xs)
    tail = jax.tree.map(lambda x: x[whole:], xs)
    carry, outputs = jax.lax.scan(chunk, carry, head)
    outputs = jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), outputs)
    if whole == length:
        return carry, outputs
    carry, last = chunk(carry, tail)
    return carry, jax.tree.map(lambda *ys: jnp.concatenate(ys), outputs, last)
