"""One update of one seed: objective, gradient, optimiser, and the check for numbers that are not finite.

Shape letters: `T` time steps, `B` examples, `S` seeds.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mnm_jax._checks import check_not_negative, check_sizes
from mnm_jax._params import leaf_names
from mnm_jax._precision import wide_dtype
from mnm_jax.recurrence import choose_micro_batch, value_and_grad
from mnm_jax.training._check_batch import check_batch, check_mean, check_metrics
from mnm_jax.training._state import TrainState
from mnm_jax.training._task import Batch, Mean, Task, optional_member, played

Array = jax.Array

_DROPOUT = 0x5EED  # distinguishes the key of the dropout from the keys that a task draws its batch from


class TrainingFault(RuntimeError):
    """Raised when a loss, gradient or parameter is not finite."""


class UpdateMetrics(NamedTuple):
    """Scalars of one update of one seed; `[S]` once mapped over seeds.

    Attributes:
      loss: the objective, `task_loss + meta_weight * meta_loss`.
      task_loss: the task's mean loss, in nats.
      meta_loss: the mean meta loss; 0 for a cell without a memory.
      grad_norm: global norm of the gradient before clipping.
    """

    loss: Array
    task_loss: Array
    meta_loss: Array
    grad_norm: Array


class Proposal(NamedTuple):
    """An update of one seed before its numbers are checked.

    Attributes:
      metrics: scalars of the update.
      grads: gradients, as `TrainState.params`.
      params: updated parameters.
      opt_state: updated state of the optimiser.
      carry: the model's carry after the batch, for a task with `carries`; else None.
    """

    metrics: UpdateMetrics
    grads: Any
    params: Any
    opt_state: Any
    carry: Any

    @property
    def checked(self) -> Any:
        """The quantities that have to be finite, in the order of `fault_names`."""
        return self.metrics.loss, self.grads, self.params, self.carry, self.opt_state


def losses(
    model: Callable, task: Task, batch: Batch, noise: Array | None = None, carry: Any = None
) -> tuple[Mean, Mean, Any]:
    """Returns the task loss over counted steps, the meta loss over unmasked steps, and the model's output.

    The meta loss of a cell without a memory is `Mean(0, 0)`. `noise` `[B]` are the seeds of a model with dropout, and
    `carry` `[B, ...]` is the carry before the batch, for a task with `carries`.
    """
    options = {name: value for name, value in (("noise", noise), ("carry", carry)) if value is not None}
    output = model(batch.inputs, **batch.flags, **options)
    task_loss = task.loss(output.logits, batch)
    check_mean(task, "loss", task_loss)
    if output.meta_loss is None:
        return task_loss, jax.tree.map(jnp.zeros_like, task_loss), output
    mask = jnp.asarray(batch.mask)
    # In bfloat16 a sum of ones ends at 256, so that both sums are at least in single precision.
    dtype = wide_dtype(output.meta_loss.dtype)
    total = jnp.sum(jnp.where(mask, output.meta_loss, 0), dtype=dtype)
    return task_loss, Mean(total, jnp.sum(mask, dtype=dtype)), output


def make_update(
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
) -> Callable[[TrainState, Batch | None], tuple[TrainState, UpdateMetrics]]:
    """Returns the update of one seed, `(state, batch) -> (state, metrics)`; batch is None for a task that samples.

        objective = sum of task losses / counted steps + meta_weight * sum of meta losses / unmasked steps

    (equation 5 of Munkhdalai et al., 2019). With `axis_name` each device holds a part of the batch: totals, counts and
    gradients are summed over the devices, so that the result is that of the whole batch even if the parts differ in
    their number of counted steps.

    For a task with `carries` the model begins with `state.carry`, the carry after the previous batch, as a constant
    (truncated backpropagation through time).

    Args:
      graphdef: the model without its parameters, from `split_model`.
      task: the task.
      optimizer: the optimiser.
      meta_weight: weight of the meta loss.
      batch_size: number of examples that a task samples, over all devices.
      accumulate: number of parts into which a device's share of the batch is divided; gradients are summed.
      devices: devices that share the batch; None: only the first local device. On a CPU each device computes its
        share in micro-batches that fit into its cache (`mnm_jax.value_and_grad`).
      divide: applied to a sampled batch; selects this device's part or constrains the placement of the batch.
      axis_name: name of the mapped axis of devices, if there is one.
    """
    check_sizes(batch_size=batch_size, accumulate=accumulate)
    check_not_negative(meta_weight=meta_weight)
    propose = make_proposal(
        graphdef,
        task,
        optimizer,
        meta_weight=meta_weight,
        batch_size=batch_size,
        accumulate=accumulate,
        devices=devices,
        divide=divide,
        axis_name=axis_name,
    )

    def update(state: TrainState, batch: Batch | None) -> tuple[TrainState, UpdateMetrics]:
        proposal = propose(state, batch)
        before = jax.tree.leaves(state.opt_state)
        checked = jax.tree.leaves(proposal.checked)
        first = len(checked) - len(before)
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in checked[:first]]
        checks = jnp.stack(finite + list(map(_stays_finite, checked[first:], before)))
        healthy = state.fault_step < 0
        fault = healthy & ~jnp.all(checks)
        updated = state._replace(
            params=proposal.params, opt_state=proposal.opt_state, step=state.step + 1, carry=proposal.carry
        )
        frozen = state._replace(
            fault_step=jnp.where(fault, state.step + 1, state.fault_step),
            fault_leaf=jnp.where(fault, jnp.argmin(checks).astype(jnp.int32), state.fault_leaf),
        )
        accept = healthy & jnp.all(checks)
        return jax.tree.map(lambda a, b: jnp.where(accept, a, b), updated, frozen), proposal.metrics

    return update


def make_proposal(
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
) -> Callable[[TrainState, Batch | None], Proposal]:
    """Returns `(state, batch) -> proposal`; arguments as in `make_update`."""
    devices = jax.local_devices()[:1] if devices is None else devices
    carries = optional_member(task, "carries")

    def sum_over_devices(tree: Any) -> Any:
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    def draw_noise(params: Any, key: Array, mask: Array) -> Array | None:
        """Returns the dropout seeds of this device's examples, `[B]`, the same for any number of devices."""
        if not getattr(nnx.merge(graphdef, params), "dropout", 0):
            return None
        if optional_member(task, "play"):
            raise ValueError(
                f"task {task.name} is played by the model, so that dropout would make the loss that of a policy other "
                "than the one that acted: set dropout to 0."
            )
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * mask.shape[1]
        key = jax.random.fold_in(key, _DROPOUT)
        draw = lambda example: jax.random.bits(jax.random.fold_in(key, example))  # noqa: E731
        # Padding is not counted: with several processes it also lies between the examples.
        number = jnp.cumsum(jnp.any(mask, axis=0), dtype=jnp.int32) - 1
        return jax.vmap(draw)(first + number)

    def summed_gradient(params: Any, batch: Batch, noise: Array | None, carry: Any) -> Any:
        no_logits = jnp.zeros((*jnp.shape(batch.mask), task.output_features))
        no_loss = task.loss(no_logits, batch)
        check_mean(task, "loss", no_loss)
        counts = no_loss.count, jnp.sum(jnp.asarray(batch.mask))
        task_count, meta_count = (jnp.maximum(count, 1) for count in sum_over_devices(counts))

        def objective(params: Any, batch: Batch, noise: Array | None, carry: Any) -> tuple[Array, Any]:
            task_loss, meta_loss, output = losses(nnx.merge(graphdef, params), task, batch, noise, carry)
            check_metrics(task, output.logits, batch)
            task_part = task_loss.total / task_count.astype(task_loss.total.dtype)
            meta_part = meta_loss.total / meta_count.astype(meta_loss.total.dtype)
            sums = task_part, meta_part
            return task_part + meta_weight * meta_part, (sums, output.carry if carries else None)

        fits = choose_micro_batch(getattr(nnx.merge(graphdef, params), "cell", None), devices[0].platform)
        sharing = len(devices) if axis_name is None else 1
        micro_batch = _micro_batch(batch.mask.shape[1], sharing, accumulate, fits)
        differentiate = value_and_grad(
            objective, batch_axis=(1, 0, 0), reduction="sum", has_aux=True, micro_batch=micro_batch
        )
        return differentiate(params, batch, noise, carry)

    def propose(state: TrainState, batch: Batch | None) -> Proposal:
        key = jax.random.fold_in(state.key, state.step)
        if task.sample is not None:
            batch = task.sample(key, batch_size, state.step)
            if not optional_member(task, "play"):
                check_batch(task, batch, batch_size)  # before `divide`, which fails without both axes
            batch = divide(batch)
        batch = played(nnx.merge(graphdef, state.params), task, batch)
        check_batch(task, batch)
        noise = draw_noise(state.params, key, jnp.asarray(batch.mask))
        (loss, (parts, carry)), grads = summed_gradient(state.params, batch, noise, state.carry)
        loss, (task_loss, meta_loss), grads = sum_over_devices((loss, parts, grads))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        norm = optax.tree.norm(grads)
        metrics = UpdateMetrics(loss=loss, task_loss=task_loss, meta_loss=meta_loss, grad_norm=norm)
        params = optax.apply_updates(state.params, updates)
        return Proposal(metrics=metrics, grads=grads, params=params, opt_state=opt_state, carry=carry)

    return propose


def _micro_batch(examples: int, sharing: int, accumulate: int, fits: int | None) -> int:
    """Returns the number of examples that are processed at once, on all devices that share the batch.

    Args:
      examples: `B`.
      sharing: number of devices that share them.
      accumulate: least number of micro-batches.
      fits: largest number per device that is processed fast; None: all.
    """
    own = examples // sharing
    if own % accumulate:
        raise ValueError(f"accumulate must divide the {own} examples of a device, got {accumulate=}.")
    part = own // accumulate
    size = min(part, fits or part)
    if sharing > 1:  # a divisor, so that every device holds as many examples of a micro-batch as the others
        size = max(divisor for divisor in range(1, size + 1) if part % divisor == 0)
    return sharing * size


def _stays_finite(new: Array, old: Array) -> Array:
    """Returns whether no number of an optimiser's state has ceased to be finite; some states begin with infinity."""
    new = jnp.asarray(new)
    if not jnp.issubdtype(new.dtype, jnp.inexact):
        return jnp.bool_(True)
    return jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old))


def fault_names(state: TrainState) -> list[str]:
    """Returns the names of the quantities that an update checks, in the order of the checks."""
    names, carried = leaf_names(state.params), [f"carry {name}".strip() for name in leaf_names(state.carry)]
    states = [f"optimiser state {name}" for name in leaf_names(state.opt_state)]
    return [
        "loss",
        *(f"gradient of {name}" for name in names),
        *(f"updated {name}" for name in names),
        *carried,
        *states,
    ]


def describe_fault(state: TrainState, first_seed: int) -> str | None:
    """Returns one line on the first seed of a state `[S, ...]` with a number that was not finite, or None."""
    steps = np.asarray(state.fault_step)
    bad = np.flatnonzero(steps >= 0)
    if not bad.size:
        return None
    index = bad[np.argmin(steps[bad])]
    name = fault_names(state)[int(state.fault_leaf[index])]
    return f"seed {first_seed + index}: {name} is not finite at update {steps[index]}."
