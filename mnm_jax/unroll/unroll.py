"""Time: how a cell is run over a sequence."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array


def unroll(
    cell: nnx.RNNCellBase,
    carry: Any,
    inputs: Array,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    checkpoint_every: int | None = None,
) -> tuple[Any, Any]:
    """Runs a cell over time: `carry_t, y_t = cell(carry_{t-1}, x_t)`.

    The carry goes in and comes out, so a long sequence may be run in several calls.

    Args:
      cell: any `nnx.RNNCellBase` whose carry leaves are `[B, ...]`.
      carry: where to start, `cell.initialize_carry((B, D))` for a new sequence.
      inputs: `[T, B, D]`.
      mask: `[T, B]` bool; where it is False the carry passes unchanged, to the bit, the outputs are zero, and the
        inputs have no influence and get exactly zero gradient, whatever they hold (NaN included).
      reset: `[T, B]` bool; where it is True a new sequence begins at this step, before its input is seen: episodes
        packed one after the other give what separate runs give.
      checkpoint_every: keep the carry of every C-th step only, and compute the steps between again in the backward
        pass: memory for T / C + C steps instead of T, for one more forward pass.

    Returns:
      (the last carry, the outputs `[T, B, ...]`).

    Raises:
      ValueError: for shapes that do not agree, or `checkpoint_every` below 1.
    """
    if inputs.ndim != 3:
        raise ValueError(f"inputs must have shape [T, B, D], got {inputs.shape}.")
    for name, flags in [("mask", mask), ("reset", reset)]:
        if flags is not None and (flags.shape != inputs.shape[:2] or flags.dtype != bool):
            raise ValueError(f"{name} must be bool of shape {inputs.shape[:2]}, got {flags.dtype} of {flags.shape}.")
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be >= 1, got {checkpoint_every=}.")

    def step(carry, xs):
        x, keep, fresh = xs
        if fresh is not None:
            carry = _select(fresh, cell.initialize_carry(x.shape), carry)
        if keep is None:
            return cell(carry, x)
        # A masked input is replaced before it is used: a gradient of zero times NaN would still be NaN.
        new, outputs = cell(carry, jnp.where(keep[:, None], x, 0))
        return _select(keep, new, carry), _select(keep, outputs, jax.tree.map(jnp.zeros_like, outputs))

    xs = (inputs, mask, reset)
    if checkpoint_every is None:
        return jax.lax.scan(step, carry, xs)
    return _checkpointed_scan(step, carry, xs, checkpoint_every)


def _checkpointed_scan(step, carry, xs, every: int):
    """A scan over chunks of `every` steps, each recomputed in the backward pass, and over what is left."""
    chunk = jax.checkpoint(lambda carry, xs: jax.lax.scan(step, carry, xs), prevent_cse=False)
    length = jax.tree.leaves(xs)[0].shape[0]
    whole = length - length % every
    head = jax.tree.map(lambda x: x[:whole].reshape(-1, every, *x.shape[1:]), xs)
    tail = jax.tree.map(lambda x: x[whole:], xs)
    carry, outputs = jax.lax.scan(chunk, carry, head)
    outputs = jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), outputs)
    if whole == length:
        return carry, outputs
    carry, last = chunk(carry, tail)
    return carry, jax.tree.map(lambda *ys: jnp.concatenate(ys), outputs, last)


def _select(condition: Array, on_true: Any, on_false: Any) -> Any:
    """Leaf by leaf `where`, with a condition `[B]` for leaves `[B, ...]`."""

    def pick(a, b):
        return jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, on_true, on_false)
