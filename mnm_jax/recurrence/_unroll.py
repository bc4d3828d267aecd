"""Runs a cell over a sequence."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax import export

from mnm_jax._auto_axes import with_auto_axes
from mnm_jax._checks import check_choice, check_flags, check_inputs, check_sizes, show
from mnm_jax._masking import Steps, check_steps, swap_axes
from mnm_jax._vary import vary_alike
from mnm_jax.recurrence._carry import (
    begin_carry,
    call_unchanged,
    check_begin,
    check_carry,
    check_has_memory,
    copy_tree,
    explain_carry,
    lacking_members,
)
from mnm_jax.recurrence._fast.record import StepError
from mnm_jax.recurrence._fast.unroll import unroll_fast
from mnm_jax.recurrence._forms import FORMS, choose_checkpoints, choose_fold, choose_form, has_forms
from mnm_jax.recurrence._protocol import MemoryCell
from mnm_jax.recurrence._scan_chunks import scan_chunks

Array = jax.Array


def unroll(
    cell: nnx.RNNCellBase,
    carry: Any | None,
    inputs: Array,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    fork: Array | None = None,
    reset_controller: Array | None = None,
    fork_memory: Array | None = None,
    form: str = "auto",
    checkpoint_every: int | None = None,
    time_major: bool = True,
) -> tuple[Any, Any]:
    """Runs a cell over time: `carry_t, y_t = cell(carry_{t-1}, x_t)`.

    A long sequence may be run in several calls: pass the last carry of one call to the next.

    Args:
      cell: any `nnx.RNNCellBase` whose carry leaves are `[B, ...]`.
      carry: the first carry. None begins a new sequence, as `cell.initialize_carry((B, D))` does, and lets the form
        "factored" use one copy of the initial weights for all examples.
      inputs: `[T, B, D]`. If they are divided over devices, carry and outputs are divided in the same way, also on a
        mesh with axes of the type Explicit. A call `cell(carry, x)` on such a mesh needs `jax.sharding.auto_axes` only
        for its derivatives, for a `DNCCell`, for a memory from `custom_memory` and for one with an inner optimiser.
        Inputs may be bools, integers or floating-point numbers, which the cells of this library convert to their
        `dtype`, as in a call of the cell.
      mask: `[T, B]` bool, False = padding: after a reset of this step, if any, the carry stays bit-equal, the outputs
        are zero, and the inputs, which may be NaN, have no influence and get exactly zero gradient.
      reset: `[T, B]` bool, True = a new sequence begins at this step, before the cell receives its input. Episodes
        packed into one row give the same results as separate runs.
      fork: `[T, B]` bool, True = the step computes its output as usual and its carry is discarded: the next step gets
        the bit-equal carry of the previous step. A question in the middle of a story then does not change the memory.
      reset_controller: `[T, B]` bool, for a cell with a neural memory. Here and in `fork_memory`, the memory is the
        fast weights and every node of the carry with `of_memory`, for `MNMCell` the recent writes of `meta_window`.
        True = before the cell receives its input, all leaves of its carry except the memory are set to their start s_0
        (for `MNMCell` the controller's state, the last read and the last keys), so that earlier inputs have an
        influence through the memory only:

            (s_t, phi_t, y_t) = cell(s'_{t-1}, phi_{t-1}; x_t),   s' = s_0 where reset_controller, else s

        A masked or forked step discards this reset, too.
      fork_memory: `[T, B]` bool, for a cell with a neural memory. True = as `fork`, for the memory alone: the step
        reads after its write as usual, and the next step gets the bit-equal memory of the previous step and the new
        rest of the carry. If `reset_controller` is set at the next step without it, such steps equal a fork.
      form: the execution form, which decides what a cell with a neural memory stores for the backward pass. All forms
        return the same values and derivatives of all orders up to rounding; forward mode through the run needs "plain"
        (forward over reverse does not). Each form rounds at other places, so that with fast weights in bfloat16 the
        gradients of two forms can differ visibly: keep them in float32, also in a cell whose `dtype` is bfloat16.

        * "plain": stores the weights of every step, by plain autodiff; the only form with gates or without a memory.
        * "reversible": stores no weights; they are computed back from the last ones. Over a reset they cannot
          be computed back, so that with `reset` the form is "factored", with the same results in more memory.
        * "factored": stores the writes; dense weights are formed every C steps only.
        * "auto": the form that `choose_form` returns, or "plain" for a step that it cannot follow, see `MemoryCell`.
      checkpoint_every: `C`. With "plain" and "reversible", only the carry of every C-th step is stored, and the steps
        between are computed again in the backward pass. This takes the memory of T / C carries and of C steps instead
        of T steps, for one more forward pass, and bounds the rounding error of weights that are computed back. With
        "factored", dense weights are formed every C steps, which bounds the cost of a step; None: every
        `max(1, d / (8 H))` steps on a CPU and `max(1, d / (2 H))` elsewhere.
      time_major: whether inputs, flags and outputs have the axes `[T, B, ...]`; if False, `[B, T, ...]`.

    Returns:
      The last carry and the outputs `[T, B, ...]`.

    Raises:
      TypeError: for an argument of the wrong kind, a carry that does not fit the cell and the inputs, a step that
        changes a variable of the cell, such as the random state of dropout, or a forward-mode derivative of another
        form than "plain".
      ValueError: for shapes that do not agree, a form that is unknown or that the cell does not support,
        `checkpoint_every` below 1, or `reset_controller` or `fork_memory` for a cell without a neural memory.

    Examples:
      >>> from mnm_jax import MNMCell, local_memory, unroll
      >>> cell = MNMCell(3, 8, local_memory(4, 4, hidden_sizes=()), out_features=2, rngs=nnx.Rngs(0))
      >>> inputs = jnp.ones((6, 5, 3))                       # T = 6, B = 5, D = 3
      >>> mask = jnp.arange(6)[:, None] < jnp.array([[6, 6, 4, 2, 1]])
      >>> carry, outputs = unroll(cell, None, inputs, mask=mask)
      >>> outputs.features.shape
      (6, 5, 2)
      >>> carry, more = unroll(cell, carry, inputs)          # continues the sequences
      >>> carry.memory.weights[0].shape
      (5, 4, 4)
    """
    if not isinstance(cell, nnx.RNNCellBase):
        raise TypeError(
            f"cell must be an nnx.RNNCellBase, got {show(cell)}: pass an instance, such as MNMCell(...); a layer is "
            "called itself."
        )
    check_choice("form", form, FORMS)
    check_flags(time_major=time_major)
    if checkpoint_every is not None:
        check_sizes(checkpoint_every=checkpoint_every)
    xs = Steps(inputs, mask=mask, reset=reset, fork=fork, reset_controller=reset_controller, fork_memory=fork_memory)
    check_steps(xs, time_major=time_major)
    check_has_memory(cell, xs)
    if not time_major:
        xs = swap_axes(xs)
    if carry is not None:
        check_carry(carry, xs.inputs.shape[1])
    run = with_auto_axes(partial(_run, form=form, checkpoint_every=checkpoint_every), xs.inputs)
    try:
        last, outputs = run(cell, carry, xs)
    except (TypeError, ValueError, AttributeError) as error:
        if problem := explain_carry(cell, carry, xs.inputs):
            raise TypeError(problem) from error
        if isinstance(features := getattr(cell, "in_features", None), int):
            check_inputs(xs.inputs, "T B D", D=features)  # its message shows the axis T, which the cell does not see
        raise
    return last, outputs if time_major else swap_axes(outputs)


def _run(
    cell: nnx.RNNCellBase, carry: Any | None, xs: Steps, *, form: str, checkpoint_every: int | None
) -> tuple[Any, Any]:
    """Returns the last carry and the outputs; arguments as in `unroll`, with time first."""
    cell, carry, xs = vary_alike((cell, carry, xs))
    chosen, every = _choose(cell, xs, form, checkpoint_every)
    # Without flags, "plain" never selects between the carries of examples, and any carry of the cell's own will do.
    if carry is None and (chosen != "plain" or any(flag is not None for flag in xs[1:])):
        check_begin(cell, xs.inputs.shape[1:])
    if chosen == "plain":
        return _unroll_plain(cell, carry, xs, every)
    try:
        return unroll_fast(cell, carry, xs, chosen, every)
    except StepError:
        if form != "auto":
            raise
        return _unroll_plain(cell, carry, xs, checkpoint_every)


def _choose(cell: nnx.RNNCellBase, xs: Steps, form: str, every: int | None) -> tuple[str, int | None]:
    """Returns the form that runs, and its number of steps between stored or dense weights."""
    steps = xs.inputs.shape[0]
    if every is not None and export.is_symbolic_dim(steps):
        raise ValueError(f"checkpoint_every={every} needs a number of steps, got the symbolic size {steps}: omit it.")
    if not has_forms(cell):
        if form not in ("auto", "plain"):
            lacks, remedy = "has no neural memory", "use form='plain'"
            if isinstance(cell, MemoryCell):
                lacks = "has a memory that is not written only in pairs"
            elif lacking := lacking_members(cell, xs.inputs.shape[2]):
                lacks = f"has a memory but lacks {', '.join(lacking)} of a MemoryCell"
                remedy = f"add what it lacks, or {remedy}"
            raise ValueError(f"{type(cell).__name__} {lacks}, so it cannot run in {form=}: {remedy}.")
        return "plain", every
    if export.is_symbolic_dim(steps):
        if form not in ("auto", "plain"):
            raise ValueError(f"{form=} needs a number of steps, got the symbolic size {steps}: use form='plain'.")
        return "plain", every
    chosen = choose_form(cell, steps, form=form, reset=xs.reset is not None)
    if every is None and chosen == "factored":
        every = choose_fold(cell)
    if every is None and (form, chosen) == ("auto", "reversible"):
        every = choose_checkpoints(steps)
    return chosen if steps else "plain", every


def _unroll_plain(cell: nnx.RNNCellBase, carry: Any | None, xs: Steps, every: int | None) -> tuple[Any, Any]:
    if carry is None:
        carry, _ = vary_alike((begin_carry(cell, xs.inputs.shape[1:]), xs))
    resets = xs.reset is not None or xs.reset_controller is not None
    start = begin_carry(cell, (1, xs.inputs.shape[2])) if resets else None

    def step(carry: Any, x: Steps) -> tuple[Any, Any]:
        carry, inputs = x.enter(carry, start)
        new, outputs = call_unchanged(copy_tree(cell), x.begin(carry, start), inputs)
        return x.leave(new, carry, outputs)

    scan: Callable[[Any, Steps], tuple[Any, Any]] = partial(jax.lax.scan, step)
    # A cell may have a faster program for all steps. A subclass does not inherit it, since its step may differ.
    steps = xs.inputs.shape[0]
    if (own := vars(type(cell)).get("_scan_steps")) and not export.is_symbolic_dim(steps) and steps:
        scan = partial(own, cell)
    if every is None:
        return scan(carry, xs)
    return scan_chunks(jax.checkpoint(scan, prevent_cse=False), carry, xs, every)
