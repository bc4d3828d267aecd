"""Dense storage: every example carries its own weight matrices. The simplest form, and the reference."""

import jax
import jax.numpy as jnp

from mnm_jax.memory.types import MemoryState, Pair

Array = jax.Array


def start(weights: tuple[Array, ...], batch_size: int) -> MemoryState:
    """phi_0 for each of `batch_size` examples."""
    return MemoryState(tuple(jnp.broadcast_to(w, (batch_size, *w.shape)) for w in weights))


def product(state: MemoryState, layer: int, inputs: Array) -> Array:
    """x W_l: `[B, H, I] -> [B, H, O]`."""
    return jnp.einsum("bhi,bio->bho", inputs, state.weights[layer])


def add(state: MemoryState, pairs: tuple[Pair, ...]) -> MemoryState:
    """W_l -= sum_h x_{l,h} (x) delta_{l,h} in every layer."""
    return MemoryState(
        tuple(w - jnp.einsum("bhi,bho->bio", p.inputs, p.delta) for w, p in zip(state.weights, pairs, strict=True))
    )
