"""How big a model is, and what a step of it computes: by XLA's own count, without compiling or running anything."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from launch.reporting.table import format_columns
from mnm_jax.training import SequenceModel, Task, TrainConfig, played


class Size(NamedTuple):
    """Of one seed. parameters: numbers that are learned, and bytes of them. carry, memory: bytes that one example keeps
    from step to step, and those of fast weights among them. flops: of one example in one step, forward. steps: `T` of
    the first test sequences."""

    parameters: int
    parameter_bytes: int
    carry: int
    memory: int
    flops: float
    steps: int


def input_shape(task: Task, model: Any) -> jax.ShapeDtypeStruct:
    """Of the inputs `[T, 1, ...]` of a first test sequence, played if the task is played."""
    batch = next(iter(task.evaluations("test", 1)[""]()))
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
    return jax.eval_shape(lambda model, batch: played(model, task, batch).inputs[:, :1], model, given)


def measure(make_model: Callable[[nnx.Rngs], SequenceModel], task: Task) -> Size:
    """The size of a model for a task."""
    model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
    inputs = input_shape(task, model)
    carry = jax.eval_shape(lambda model: model.start(1), model)
    step = jax.jit(SequenceModel.step).lower(model, carry, jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype))
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    memory = getattr(carry, "memory", ())
    counted = step.cost_analysis() or {}
    return Size(
        sum(leaf.size for leaf in params),
        *map(_bytes, (params, carry, memory)),
        counted.get("flops", math.nan),
        inputs.shape[0],
    )


def report(size: Size, training: TrainConfig) -> str:
    """A table of one line, for the start of a run; an update counts its backward pass as two forward passes."""
    update = 3 * size.flops * size.steps * training.batch_size * training.seeds
    passed = f"an update (T {size.steps}, B {training.batch_size}, seeds {training.seeds})"
    row = {
        "parameters": f"{size.parameters:,} ({_readable(size.parameter_bytes)})",
        "carry of an example": _readable(size.carry),
        "of it fast weights": _readable(size.memory),
        "a step": f"{size.flops / 1e6:,.3f} MFLOP",
        passed: f"{update / 1e9:,.2f} GFLOP",
    }
    return format_columns([row])


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _readable(count: int) -> str:
    return f"{count / 2**10:,.1f} KiB" if count < 2**20 else f"{count / 2**20:,.1f} MiB"
