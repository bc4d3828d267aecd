"""The size of a model and the operations of a step, as XLA counts them, without compiling or running a program."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from mnm_jax.training import SequenceModel, Task, TrainConfig, played


class Size(NamedTuple):
    """Sizes of one seed's model.

    Attributes:
      parameters: number of learned values.
      parameter_bytes: their bytes.
      carry: bytes that one example keeps from step to step.
      memory: bytes of fast weights in the carry.
      flops: floating point operations of one example in one step, forward.
      steps: `T` of the first test batch.
    """

    parameters: int
    parameter_bytes: int
    carry: int
    memory: int
    flops: float
    steps: int


def input_shape(task: Task, model: SequenceModel) -> jax.ShapeDtypeStruct:
    """Returns shape `[T, 1, ...]` and dtype of the inputs of one test sequence, played first if the task is."""
    batch = next(iter(task.evaluations("test", 1)[""]()))
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
    return jax.eval_shape(lambda model, batch: played(model, task, batch).inputs[:, :1], model, given)


def measure(make_model: Callable[[nnx.Rngs], SequenceModel], task: Task) -> Size:
    """Returns the size of a model for a task."""
    model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
    inputs = input_shape(task, model)
    carry = jax.eval_shape(lambda model: model.start(1), model)
    step = jax.jit(SequenceModel.step).lower(model, carry, jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype))
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    counted = step.cost_analysis() or {}
    return Size(
        parameters=sum(leaf.size for leaf in params),
        parameter_bytes=_bytes(params),
        carry=_bytes(carry),
        memory=_bytes(_memories(carry)),
        flops=counted.get("flops", math.nan),
        steps=inputs.shape[0],
    )


def describe(size: Size, training: TrainConfig) -> str:
    """Returns one line for the start of a run.

    An update counts its backward pass as two forward passes.
    """
    update = 3 * size.flops * size.steps * training.batch_size * training.seeds
    return (
        f"{size.parameters:,} parameters ({_readable(size.parameter_bytes)}), "
        f"carry {_readable(size.carry)} per example, {_readable(size.memory)} of it fast weights; "
        f"{size.flops / 1e6:,.3f} MFLOP per step, {update / 1e9:,.2f} GFLOP per update "
        f"(T {size.steps}, B {training.batch_size}, seeds {training.seeds})"
    )


def _memories(carry: Any) -> list[Any]:
    """Returns the memories of a carry, or of the carries of a stack of layers."""
    parts = jax.tree.leaves(carry, is_leaf=lambda part: hasattr(part, "memory"))
    return [part.memory for part in parts if hasattr(part, "memory")]


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _readable(count: int) -> str:
    return f"{count / 2**10:,.1f} KiB" if count < 2**20 else f"{count / 2**20:,.1f} MiB"
