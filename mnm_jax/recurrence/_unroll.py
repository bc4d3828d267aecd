"""Time: how a cell is run over a sequence."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax.recurrence._checkpoints import scan_chunks
from mnm_jax.recurrence._fast.adjoint import Inputs
from mnm_jax.recurrence._fast.program import unroll_by_hand
from mnm_jax.recurrence._forms import FORMS, choose_checkpoints, choose_fold, choose_form, has_forms
from mnm_jax.recurrence._masking import select, who_stays
from mnm_jax.recurrence._protocol import MemoryCell

Array = jax.Array


def unroll(
    cell: nnx.RNNCellBase,
    carry: Any | None,
    inputs: Array,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    fork: Array | None = None,
    form: str = "auto",
    checkpoint_every: int | None = None,
) -> tuple[Any, Any]:
    """Runs a cell over time: `carry_t, y_t = cell(carry_{t-1}, x_t)`.

    The carry goes in and comes out, so a long sequence may be run in several calls.

    Args:
      cell: any `nnx.RNNCellBase` whose carry leaves are `[B, ...]`.
      carry: where to start; None begins a new sequence, as `cell.initialize_carry((B, D))` does, and tells that all
        examples share the memory they start from.
      inputs: `[T, B, D]`.
      mask: `[T, B]` bool; where it is False the carry passes unchanged, to the bit, the outputs are zero, and the
        inputs have no influence and get exactly zero gradient, whatever they hold (NaN included).
      reset: `[T, B]` bool; where it is True a new sequence begins at this step, before its input is seen: episodes
        packed one after the other give what separate runs give.
      fork: `[T, B]` bool; where it is True the step is taken on a fork of the carry: its output is as ever, and the
        carry passes on unchanged, to the bit. Questions asked in the middle of a story do not change what is known.
      form: what the backward pass keeps of a cell with a neural memory; all give the same values and gradients.
        "plain": the weights of every step, by autodiff; the only one for other cells, for forward-mode derivatives and
        for derivatives of derivatives. "reversible": no weights, they are computed back from the last ones.
        "factored": no weights are formed at all, only what was written is kept. "auto": see `choose_form`.
      checkpoint_every: "plain", "reversible": keep the carry of every C-th step only, and compute the steps between
        again in the backward pass: memory for T / C carries and what C steps keep, instead of what T steps keep, for
        one more forward pass. It also stops rounding from growing in weights that are computed back. "factored": form
        weights every C-th step, which bounds the cost of a step; None: every `choose_fold(cell)` steps.

    Returns:
      (the last carry, the outputs `[T, B, ...]`).

    Raises:
      ValueError: for shapes that do not agree, an unknown form or one that the cell does not have, or
        `checkpoint_every` below 1.
    """
    if inputs.ndim != 3:
        raise ValueError(f"inputs must have shape [T, B, D], got {inputs.shape}.")
    for name, flags in [("mask", mask), ("reset", reset), ("fork", fork)]:
        if flags is not None and (flags.shape != inputs.shape[:2] or flags.dtype != bool):
            raise ValueError(f"{name} must be bool of shape {inputs.shape[:2]}, got {flags.dtype} of {flags.shape}.")
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be >= 1, got {checkpoint_every=}.")

    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form=}.")
    if has_forms(cell):
        chosen = choose_form(cell, inputs.shape[0], form=form, reset=reset is not None)
        if checkpoint_every is None and chosen == "factored":
            checkpoint_every = choose_fold(cell)
        if checkpoint_every is None and (form, chosen) == ("auto", "reversible"):
            checkpoint_every = choose_checkpoints(inputs.shape[0])
        form = chosen
        if form != "plain":
            return unroll_by_hand(cell, carry, Inputs(inputs, mask, reset, fork), form, checkpoint_every)
    elif form not in ("auto", "plain"):
        lacks = "has no memory"
        if isinstance(cell, MemoryCell):
            lacks = "has a memory that is not written in pairs alone, so not"
        raise ValueError(f"{type(cell).__name__} {lacks} to run in {form=}: use form='plain'.")
    if carry is None:
        carry = cell.initialize_carry(inputs.shape[1:])

    def step(carry, xs):
        x, keep, fresh, aside = xs
        if fresh is not None:
            carry = select(fresh, cell.initialize_carry(x.shape), carry)
        # A masked input is replaced before it is used: a gradient of zero times NaN would still be NaN.
        new, outputs = cell(carry, x if keep is None else jnp.where(keep[:, None], x, 0))
        stays = who_stays(keep, aside)
        if stays is not None:
            new = select(stays, new, carry)
        if keep is not None:
            outputs = select(keep, outputs, jax.tree.map(jnp.zeros_like, outputs))
        return new, outputs

    xs = (inputs, mask, reset, fork)
    if checkpoint_every is None:
        return jax.lax.scan(step, carry, xs)
    chunk = jax.checkpoint(lambda carry, xs: jax.lax.scan(step, carry, xs), prevent_cse=False)
    return scan_chunks(chunk, carry, xs, checkpoint_every)
