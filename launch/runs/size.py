"""The size of a model and the operations of a step, as XLA counts them, without compiling or running a program."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from mnm_jax.training import Batch, SequenceModel, Task, TrainConfig, played

_BATCHES = 20  # of a loader, whose sizes are averaged


class Size(NamedTuple):
    """Sizes of one seed's model.

    Attributes:
      parameters: number of learned values.
      parameter_bytes: their bytes.
      carry: bytes that one example keeps from step to step.
      memory: bytes of fast weights in the carry.
      flops: floating point operations of one example in one step, forward.
      steps: `T` of a training batch.
      rows: `B` of a training batch. If the task reads files, both are the means of the first batches of a run, which
        differ in size.
    """

    parameters: int
    parameter_bytes: int
    carry: int
    memory: int
    flops: float
    steps: float
    rows: float


def sequence_shape(task: Task, model: SequenceModel) -> Batch:
    """Returns shapes `[T, 1, ...]` and dtypes of one test sequence, played first if the task is."""
    sets = task.evaluations("test", 1)
    if "" not in sets:
        raise ValueError(f'task {task.name} must have the trained setting as the set "", got {list(sets)}.')
    batch = next(iter(sets[""]()))
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)

    def play(model: SequenceModel, batch: Any) -> Batch:
        return jax.tree.map(lambda leaf: leaf[:, :1], played(model, task, batch))

    return jax.eval_shape(play, model, given)


def batch_shape(task: Task, training: TrainConfig) -> tuple[float, float]:
    """Returns `T` and `B` of a training batch: from one that is drawn, or the means of the first ones of a loader.

    For a loader, `T` is weighted by `B`, so that their product is the mean number of steps of all rows.
    """
    if task.sample is not None:
        return jax.eval_shape(
            partial(task.sample, batch_size=training.batch_size, step=0), jax.random.key(0)
        ).mask.shape
    shapes = np.array([batch.mask.shape for batch in first_batches(task, training)])
    rows = np.mean(shapes[:, 1])
    return np.mean(shapes[:, 0] * shapes[:, 1]) / rows, rows


def first_batches(task: Task, training: TrainConfig) -> list[Batch]:
    """Returns the first batches of a run, for a task that reads files."""
    assert task.loader is not None
    return list(itertools.islice(task.loader(training.seed, training.batch_size), _BATCHES))


def typical_batch(task: Task, training: TrainConfig) -> Batch:
    """Returns that of the first batches whose size is nearest to their mean."""
    batches = first_batches(task, training)
    sizes = np.array([batch.mask.size for batch in batches])
    return batches[np.argmin(np.abs(sizes - np.mean(sizes)))]


def measure(make_model: Callable[[nnx.Rngs], SequenceModel], task: Task, training: TrainConfig) -> Size:
    """Returns the size of a model for a task and its training."""
    model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
    inputs = sequence_shape(task, model).inputs
    carry = jax.eval_shape(lambda model: model.start(1), model)
    step = jax.jit(SequenceModel.step).lower(model, carry, jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype))
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    counted = step.cost_analysis() or {}
    steps, rows = batch_shape(task, training)
    return Size(
        parameters=sum(leaf.size for leaf in params),
        parameter_bytes=_bytes(params),
        carry=_bytes(carry),
        memory=_bytes(_memories(carry)),
        flops=counted.get("flops", math.nan),
        steps=steps,
        rows=rows,
    )


def describe(size: Size, training: TrainConfig) -> str:
    """Returns one line for the start of a run.

    An update counts its backward pass as two forward passes.
    """
    update = 3 * size.flops * size.steps * size.rows * training.seeds
    return (
        f"{size.parameters:,} parameters ({_readable(size.parameter_bytes)}), "
        f"carry {_readable(size.carry)} per example, {_readable(size.memory)} of it fast weights; "
        f"{size.flops / 1e6:,.3f} MFLOP per step, {update / 1e9:,.2f} GFLOP per update "
        f"(T {size.steps:.0f}, B {size.rows:.0f}, seeds {training.seeds})"
    )


def _memories(carry: Any) -> list[Any]:
    """Returns the memories of a carry, or of the carries of a stack of layers."""
    parts = jax.tree.leaves(carry, is_leaf=lambda part: hasattr(part, "memory"))
    return [part.memory for part in parts if hasattr(part, "memory")]


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _readable(count: int) -> str:
    return f"{count / 2**10:,.1f} KiB" if count < 2**20 else f"{count / 2**20:,.1f} MiB"
