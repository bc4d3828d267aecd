"""Runs a memory cell with `adjoint.run`, which takes the memory separately from the rest of the carry."""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax._linear import dot_general
from mnm_jax._masking import Steps
from mnm_jax._refuse import reverse_only
from mnm_jax._vary import vary_alike
from mnm_jax.memory import MemoryState, TargetMaps
from mnm_jax.recurrence._carry import CarryLayout, call_unchanged, copy_tree
from mnm_jax.recurrence._fast.adjoint import Program, run
from mnm_jax.recurrence._fast.record import RULE_MAP, TRANSFORMED, Recorder, StepError, StepLog
from mnm_jax.recurrence._fast.replay import Replay
from mnm_jax.recurrence._fast.states import Start, Weights
from mnm_jax.recurrence._forms import keeps_dense_cotangent
from mnm_jax.recurrence._scan_chunks import scan_chunks

Array = jax.Array

_NO_FORWARD_MODE = (
    "the forms 'reversible' and 'factored' have no forward-mode derivatives (jax.jvp, jax.jacfwd, jax.linearize); "
    "use unroll(..., form='plain'), or take the derivative in reverse mode."
)


def unroll_fast(cell: nnx.RNNCellBase, carry: Any | None, xs: Steps, form: str, every: int | None) -> tuple[Any, Any]:
    """Runs a memory cell in the form "reversible" or "factored", as `unroll` does for a sequence `[T, B, ...]`.

    Dense weights are stored after every `every` steps; None: one run over the whole sequence.
    """
    cell, carry, inputs = reverse_only((cell, carry, xs.inputs), _NO_FORWARD_MODE)
    xs = xs._replace(inputs=inputs)
    steps, batch_size = xs.inputs.shape[:2]
    begin = cell.initialize_carry((1, xs.inputs.shape[2]))
    layout, structure = CarryLayout.of(begin), cast(Any, jax.tree.structure(begin))
    begin, memory = vary_alike((layout.split(begin), xs))[0]
    shared = tuple(w[0] for w in memory.weights)
    if carry is None:
        small = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch_size, *x.shape[1:])), begin)
        start = Start(shared, None)
    else:
        if jax.tree.structure(carry) != structure:  # `unroll` names the leaves or the memory that differ
            kind = type(cell).__name__
            raise TypeError(
                f"carry must have the structure of {kind}.initialize_carry, {structure}, "
                f"got {jax.tree.structure(carry)}: use a carry of this cell."
            )
        small, memory = layout.split(carry)
        if [(w.shape[1:], w.dtype) for w in memory.weights] != [(w.shape, w.dtype) for w in shared]:
            raise ValueError("the memory in the carry has other layers than that of the cell.")  # `unroll` names them
        start = Start(None if xs.reset is None else shared, memory.weights)
    factored = form == "factored"
    theta = (cell, begin)
    every = None if every is None or every >= steps else every
    program = Program(
        step=partial(_step, layout),
        factored=factored,
        dense_cotangent=factored and every is not None and xs.reset is None and keeps_dense_cotangent(),
        kernels=_kernels,
        add_kernels=_add_kernels,
    )
    kernels = program.transposed_kernels(theta)
    if every is None:
        small, own, outputs = run(program, theta, kernels, small, start, xs)
        return layout.join(small, MemoryState(own)), outputs

    own = start.dense(batch_size).weights

    def chunk(carry: tuple[Any, Weights], xs: Steps) -> tuple[tuple[Any, Weights], Any]:
        start = Start(None if xs.reset is None else shared, carry[1])
        small, own, outputs = run(program, theta, kernels, carry[0], start, xs)
        return (small, own), outputs

    if not factored:
        chunk = jax.checkpoint(chunk, prevent_cse=False)  # the residuals of its steps are computed again, too
    (small, own), outputs = scan_chunks(chunk, (small, own), xs, every)
    return layout.join(small, MemoryState(own)), outputs


def _step(
    layout: CarryLayout, theta: Any, small: list[Any], memory: Recorder | Replay, x: Steps
) -> tuple[list[Any], Any, Any]:
    """See `Program.step`; theta = (cell, small carry at the start of a sequence)."""
    cell, begin = copy_tree(theta)
    for index, linear in _ordinary_maps(cell):
        linear.dot_general = memory.dot_general(index)
    small, inputs = x.enter(small, begin)
    carry, outputs = call_unchanged(cell, layout.join(x.begin(small, begin), memory), inputs)
    new, written = layout.split(carry)
    if not isinstance(written, Recorder | Replay) or _has_log((new, outputs)):
        raise StepError(TRANSFORMED)
    small, outputs = x.leave(new, small, outputs)
    return small, written, outputs


def _has_log(tree: Any) -> bool:
    """Returns whether a tree holds the state of the memory, which must not leave a step in another place."""
    return any(isinstance(leaf, StepLog) for leaf in jax.tree.leaves(tree))


def _ordinary_maps(cell: Any) -> list[tuple[int, nnx.Linear]]:
    """Returns the linear maps with their indices, without those that compute their product in a way of their own."""
    known = (jax.lax.dot_general, dot_general)
    return [
        (index, linear)
        for index, linear in enumerate(cell.linear_maps())
        if getattr(linear, "dot_general", None) in known
    ]


def _kernels(theta: Any) -> dict[int, Array]:
    cell = theta[0]
    kernels = {index: linear.kernel.get_value() for index, linear in _ordinary_maps(cell)}
    targets = cell.memory_params.get_value().targets
    # Other parameters of a rule are differentiated step by step.
    return {**kernels, RULE_MAP: targets.kernel} if isinstance(targets, TargetMaps) else kernels


def _add_kernels(theta: Any, additions: dict[int, Array]) -> Any:
    theta = copy_tree(theta)
    cell = theta[0]
    for index, linear in enumerate(cell.linear_maps()):
        if index in additions:
            linear.kernel.set_value(linear.kernel.get_value() + additions[index])
    if RULE_MAP in additions:
        params = cell.memory_params.get_value()
        kernel = params.targets.kernel + additions[RULE_MAP]
        cell.memory_params.set_value(params._replace(targets=params.targets._replace(kernel=kernel)))
    return theta
