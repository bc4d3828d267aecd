"""A scan over chunks as one Pallas kernel, whose carry stays on the chip.

Each of N programs runs its own scan. A program loads the inputs of a chunk, computes, and stores the outputs of the
chunk. Its carry travels to the device's memory only at the end: on a GPU it stays in registers, in a loop over the
chunks; on a TPU it stays in VMEM, where a block of the output remains while the last axis of the grid advances.

Shape letters: `N` programs, `S` chunks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

Array = jax.Array
# The message for derivatives that a kernel does not have.
ONE_DERIVATIVE = (
    "the kernel (backend='pallas', or 'auto' on some GPUs) has no second derivatives and no forward-mode derivatives "
    "(jax.hessian, jax.jvp, jax.linearize): pass backend='xla', or take one derivative in reverse mode."
)
Step = Callable[[Any, Any], tuple[Any, Any]]
# Selects Triton, instead of Mosaic, on an NVIDIA GPU. With 8 warps fewer registers spill than with 4 (`ptxas -v`).
_TRITON = triton.CompilerParams(num_warps=8, num_stages=1)


def scan_on_chip(
    step: Step, carry: Any, xs: Any, *, reverse: bool = False, on_gpu: Step | None = None
) -> tuple[Any, Any]:
    """Returns `jax.vmap(lambda carry, xs: jax.lax.scan(step, carry, xs, reverse=reverse))(carry, xs)` from one kernel.

    On a CPU the kernel runs in Pallas' interpret mode, which is slow.

    Args:
      step: `(carry, x) -> (carry, y)` of one program and one chunk; all leaves are matrices.
      carry: leaves `[N, ., .]`.
      xs: leaves `[N, S, ., .]`.
      reverse: whether the last chunk comes first.
      on_gpu: the same function in operations for a GPU, if they differ.
    """
    run, run_on_gpu = (partial(_call, f, reverse=reverse) for f in (step, on_gpu or step))
    return jax.lax.platform_dependent(
        carry,
        xs,
        cuda=partial(run_on_gpu, in_loop=True),
        rocm=partial(run_on_gpu, in_loop=True),
        tpu=partial(run, in_loop=False),
        cpu=partial(run, in_loop=False, interpret=True),
    )


def _call(step: Step, carry: Any, xs: Any, *, reverse: bool, in_loop: bool, interpret: bool = False) -> tuple[Any, Any]:
    """Runs the kernel; `in_loop`: with a loop over the chunks (GPU), otherwise with an axis of the grid (TPU)."""
    programs, chunks = jax.tree.leaves(xs)[0].shape[:2]
    shapes = jax.eval_shape(jax.vmap(partial(jax.lax.scan, step)), carry, xs)

    def place(index: Any) -> Any:
        return chunks - 1 - index if reverse else index

    def of_program(leaf: Any) -> pl.BlockSpec:
        return pl.BlockSpec((None, *leaf.shape[1:]), lambda n, *_: (n, *(0 for _ in leaf.shape[1:])))

    def of_chunk(leaf: Any) -> pl.BlockSpec:
        if in_loop:
            return of_program(leaf)
        return pl.BlockSpec((None, None, *leaf.shape[2:]), lambda n, s: (n, place(s), *(0 for _ in leaf.shape[2:])))

    def specs(carry: Any, of_chunks: Any) -> tuple[Any, Any]:
        return jax.tree.map(of_program, carry), jax.tree.map(of_chunk, of_chunks)

    def loop(carry: Any, xs: Any, end: Any, ys: Any) -> None:
        def body(index: Array, values: Any) -> Any:
            s = place(index)
            values, outputs = step(values, jax.tree.map(lambda ref: ref[s], xs))
            jax.tree.map(partial(_store, s), ys, outputs)
            return values

        values = jax.lax.fori_loop(0, chunks, body, jax.tree.map(lambda ref: ref[...], carry))
        jax.tree.map(partial(_store, ...), end, values)

    def grid_step(carry: Any, xs: Any, end: Any, ys: Any) -> None:
        @pl.when(pl.program_id(1) == 0)
        def _() -> None:
            jax.tree.map(lambda ref, start: _store(..., ref, start[...]), end, carry)

        values, outputs = step(*jax.tree.map(lambda ref: ref[...], (end, xs)))
        jax.tree.map(partial(_store, ...), (end, ys), (values, outputs))

    return pl.pallas_call(
        loop if in_loop else grid_step,
        grid=(programs,) if in_loop else (programs, chunks),
        in_specs=specs(carry, xs),
        out_specs=specs(*shapes),
        out_shape=shapes,
        compiler_params=_TRITON if in_loop else None,
        interpret=interpret,
    )(carry, xs)


def _store(where: Any, ref: Any, value: Array) -> None:
    ref[where] = value
