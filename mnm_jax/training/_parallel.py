"""One step for all seeds on all local devices: the batch is divided, everything else on every device, or divided too.

Shape letters: `T` time steps, `B` examples, `S` seeds.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mnm_jax.training import _hosts as hosts
from mnm_jax.training._state import TrainState
from mnm_jax.training._step import StepMetrics, make_step
from mnm_jax.training._task import Batch, Task

PARALLEL = ("jit", "pmap", "fsdp")
_AXIS = "data"
_BATCH = P(None, _AXIS)  # leaves [T, B, ...]


class Placement(NamedTuple):
    """Where arrays lie. replicated: a copy on every device; divided: leaves `[T, B, ...]`, `B` over the devices."""

    replicated: NamedSharding
    divided: NamedSharding


def make_placement(devices: Sequence[jax.Device]) -> Placement:
    mesh = jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    return Placement(NamedSharding(mesh, P()), NamedSharding(mesh, _BATCH))


def place_state(state: Any, placement: Placement, parallel: str) -> Any:
    """Where each leaf `[S, ...]` of a state (or of parameters, or their shapes) lies: a tree of shardings.

    "fsdp": divided along its longest axis but S that the number of devices divides; whole on each where there is none.
    Else: whole on every device.
    """

    mesh, count = placement.divided.mesh, placement.divided.num_devices

    def place(leaf: Any) -> NamedSharding:
        sizes = np.shape(leaf)
        axes = [axis for axis in range(1, len(sizes)) if sizes[axis] % count == 0]
        if parallel != "fsdp" or not axes:
            return placement.replicated
        longest = max(axes, key=lambda axis: sizes[axis])
        return NamedSharding(mesh, P(*[None] * longest, _AXIS))

    return jax.tree.map(place, state)


def place_batch(batch: Batch, placement: Placement) -> Batch:
    """A batch on the devices: divided if `B` allows it, as the last batch of an evaluation may not."""
    size = np.shape(batch.mask)[1]
    divisible = size % placement.divided.num_devices == 0
    return hosts.put(batch, placement.divided if divisible else placement.replicated)


def pad_batch(batch: Batch, devices: int) -> Batch:
    """A batch that was read, its last example repeated, but counted nowhere, until so many devices can divide it."""
    lacking = -np.shape(batch.mask)[1] % devices
    if not lacking:
        return batch

    def pad(leaf: np.ndarray, mode: str) -> np.ndarray:
        return np.pad(leaf, [(0, 0), (0, lacking), *[(0, 0)] * (leaf.ndim - 2)], mode=mode)

    inputs, targets = jax.tree.map(lambda leaf: pad(leaf, "edge"), (batch.inputs, batch.targets))
    counted = (batch.loss_mask, batch.mask, batch.fork)
    return Batch(inputs, targets, *jax.tree.map(lambda leaf: pad(leaf, "constant"), counted))


def map_seeds(function: Callable, devices: Sequence[jax.Device]) -> Callable:
    """`(state, batch) -> ...` of one seed, for all seeds in one program; state leaves `[S, ...]`, one batch for all.

    Side by side by `vmap`; on a CPU one after the other: its small products have nothing to gain from more of them,
    and a batch of weight matrices slows them down.
    """
    if devices[0].platform == "cpu":
        return lambda state, batch: jax.lax.map(lambda one: function(one, batch), state)
    return jax.vmap(function, in_axes=(0, None))


def make_parallel_step(
    graphdef: nnx.GraphDef,
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    meta_weight: float,
    batch_size: int,
    accumulate: int = 1,
    devices: Sequence[jax.Device],
    parallel: str = "jit",
    state: TrainState | None = None,
) -> Callable[[TrainState, Batch | None], tuple[TrainState, StepMetrics]]:
    """The step of all seeds, compiled; state leaves `[S, ...]`, batch leaves `[T, B, ...]` shared by the seeds.

    The state passed in is used up (its memory is given to the new one). Every form equals one device.

    Args:
        accumulate: parts of a device's share of the batch, one after the other.
        parallel: "jit" lets the compiler divide the work along the batch; "pmap" writes the sums over devices out, and
            each device draws the whole batch of a sampled task and keeps its part; "fsdp" is "jit" with parameters and
            optimiser divided over the devices as well (`place_state`), and gathered where a product needs them.
        state: for "fsdp", a state or its shapes.

    Raises:
        ValueError: an unknown `parallel`, or a batch size that the number of devices does not divide.
    """
    count = len(devices)
    if batch_size % count:
        raise ValueError(f"batch_size must be a multiple of the {count} devices, got {batch_size=}.")
    placement = make_placement(devices)

    def seeds_step(divide: Callable[[Batch], Batch], axis_name: str | None = None) -> Callable:
        step = make_step(
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
        return map_seeds(step, devices)

    if parallel not in PARALLEL:
        raise ValueError(f"parallel must be one of {', '.join(PARALLEL)}, got {parallel!r}.")
    if parallel == "pmap" and jax.process_count() > 1:
        raise ValueError("pmap divides over the devices of one process; of several take parallel='jit' or 'fsdp'.")
    if parallel != "pmap":
        whole = placement.replicated
        kept = whole if parallel == "jit" else place_state(state, placement, parallel)
        return jax.jit(
            seeds_step(lambda batch: jax.lax.with_sharding_constraint(batch, placement.divided)),
            in_shardings=(kept, placement.divided),
            out_shardings=(kept, whole),
            donate_argnums=0,
        )

    part = batch_size // count

    def own_part(batch: Batch) -> Batch:
        start = jax.lax.axis_index(_AXIS) * part
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, part, axis=1), batch)

    mapped = jax.pmap(
        seeds_step(own_part, _AXIS),
        axis_name=_AXIS,
        in_axes=(None, 1),
        out_axes=None,
        devices=devices,
        donate_argnums=0,
    )

    def pmap_step(state: TrainState, batch: Batch | None) -> tuple[TrainState, StepMetrics]:
        if batch is None:  # pmap needs something to divide; a task that samples does not look at it
            return mapped(state, np.zeros((1, count)))
        return mapped(state, jax.tree.map(lambda leaf: _fold_devices(leaf, count), batch))

    return pmap_step


def _fold_devices(leaf: Any, count: int) -> Any:
    """`[T, B, ...]` to `[T, devices, B / devices, ...]`."""
    steps, size = leaf.shape[:2]
    return leaf.reshape(steps, count, size // count, *leaf.shape[2:])
