"""One step of training, for one seed: objective, gradient, update, and the watch for numbers that are not finite.

Shape letters: `T` time steps, `B` examples, `S` seeds.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mnm_jax._params import leaf_names
from mnm_jax.training._groups import choose_groups, value_and_grad_in_groups
from mnm_jax.training._state import TrainState
from mnm_jax.training._task import Batch, Mean, Task, played

Array = jax.Array


class TrainingFault(RuntimeError):
    """Training met a number that is not finite."""


class StepMetrics(NamedTuple):
    """Scalars of one step of one seed (`[S]` once mapped over seeds).

    loss: the objective, task_loss + meta_weight * meta_loss; task_loss: nats; meta_loss: 0 for a cell without a
    memory; grad_norm: global norm of the gradient, before it is clipped.
    """

    loss: Array
    task_loss: Array
    meta_loss: Array
    grad_norm: Array


def losses(model: Callable, task: Task, batch: Batch) -> tuple[Mean, Mean, Any]:
    """Task loss over counted steps, meta loss over real steps, and the model's output.

    A cell without a memory has the meta loss `Mean(0, 0)`.
    """
    output = model(batch.inputs, batch.mask, batch.fork)
    task_loss = task.loss(output.logits, batch)
    if output.meta_loss is None:
        return task_loss, jax.tree.map(jnp.zeros_like, task_loss), output
    real = jnp.asarray(batch.mask)
    total = jnp.sum(jnp.where(real, output.meta_loss, 0))
    return task_loss, Mean(total, jnp.sum(real, dtype=total.dtype)), output


def make_step(
    graphdef: nnx.GraphDef,
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    meta_weight: float,
    batch_size: int,
    accumulate: int = 1,
    devices: Sequence[jax.Device] | None = None,
    divide: Callable[[Batch], Batch] = lambda batch: batch,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch | None], tuple[TrainState, StepMetrics]]:
    """The step of one seed, `(state, batch) -> (state, metrics)`; batch is None for a task that samples.

    objective = sum of task losses / counted steps + meta_weight * sum of meta losses / real steps

    (equation 5 of Munkhdalai et al., 2019). With `axis_name` each device holds a part of the batch; totals, counts
    and gradients are summed over the devices, so that the result is that of the whole batch even where the parts
    count unequal numbers of steps.

    Args:
        accumulate: parts of a device's share that are worked through one after the other.
        devices: over which the batch is divided (None: the first one alone); each works through its part in groups
            (`_groups.py`).
        divide: applied to a sampled batch: what keeps this device's part, or says how the batch lies on the devices.
    """

    devices = jax.local_devices()[:1] if devices is None else devices

    def add_devices(tree):
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    def value_and_grad(params, batch):
        nothing = jnp.zeros((*jnp.shape(batch.mask), task.output_features))
        counts = task.loss(nothing, batch).count, jnp.sum(jnp.asarray(batch.mask))
        task_count, meta_count = (jnp.maximum(count, 1) for count in add_devices(counts))

        def objective(params, batch):
            task_loss, meta_loss, _ = losses(nnx.merge(graphdef, params), task, batch)
            task_part = task_loss.total / task_count.astype(task_loss.total.dtype)
            meta_part = meta_loss.total / meta_count.astype(meta_loss.total.dtype)
            return task_part + meta_weight * meta_part, (task_part, meta_part)

        cell = getattr(nnx.merge(graphdef, params), "cell", None)
        examples = batch.mask.shape[1] // (len(devices) if axis_name is None else 1)
        if examples % accumulate:
            raise ValueError(f"accumulate must divide the {examples} examples of a device, got {accumulate=}.")
        groups = accumulate * choose_groups(cell, examples // accumulate, devices[0].platform)
        return value_and_grad_in_groups(objective, groups)(params, batch)

    def step(state: TrainState, batch: Batch | None) -> tuple[TrainState, StepMetrics]:
        if task.sample is not None:
            batch = divide(task.sample(jax.random.fold_in(state.key, state.step), batch_size, state.step))
        batch = played(nnx.merge(graphdef, state.params), task, batch)
        (loss, parts), grads = value_and_grad(state.params, batch)
        (loss, parts), grads = add_devices(((loss, parts), grads))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        checks = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in (loss, *jax.tree.leaves((grads, params)))])
        healthy = state.fault_step < 0
        fault = healthy & ~jnp.all(checks)
        new = TrainState(params, opt_state, state.key, state.step + 1, state.fault_step, state.fault_leaf)
        frozen = state._replace(
            fault_step=jnp.where(fault, state.step + 1, state.fault_step),
            fault_leaf=jnp.where(fault, jnp.argmin(checks).astype(jnp.int32), state.fault_leaf),
        )
        go_on = healthy & jnp.all(checks)
        state = jax.tree.map(lambda a, b: jnp.where(go_on, a, b), new, frozen)
        return state, StepMetrics(loss, *parts, optax.tree.norm(grads))

    return step


def fault_names(params: Any) -> list[str]:
    """What each check of a step looks at, in the order of the checks."""
    names = leaf_names(params)
    return ["loss", *(f"gradient of {name}" for name in names), *(f"updated {name}" for name in names)]


def describe_fault(state: TrainState, first_seed: int) -> str | None:
    """One line on the first seed (leaves `[S]`) that met a number that is not finite; None if all is well."""
    steps = np.asarray(state.fault_step)
    bad = np.flatnonzero(steps >= 0)
    if not bad.size:
        return None
    index = bad[np.argmin(steps[bad])]
    name = fault_names(state.params)[int(state.fault_leaf[index])]
    return f"seed {first_seed + index}: {name} is not finite at step {steps[index]}."
