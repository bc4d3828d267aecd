"""The update of all seeds on several devices: the batch is divided, and the state is replicated or divided.

Shape letters: `T` time steps, `B` examples, `S` seeds.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mnm_jax._checks import check_choice, check_sizes
from mnm_jax.training._processes import to_devices
from mnm_jax.training._state import TrainState
from mnm_jax.training._task import Batch, Task
from mnm_jax.training._update import UpdateMetrics, make_update

PARALLEL = ("jit", "pmap", "fsdp")
_AXIS = "data"
_BATCH = P(None, _AXIS)  # leaves [T, B, ...]


class Placement(NamedTuple):
    """Shardings of a run's arrays.

    Attributes:
      replicated: a copy on every device.
      divided: leaves `[T, B, ...]` with `B` divided over the devices.
    """

    replicated: NamedSharding
    divided: NamedSharding


def make_placement(devices: Sequence[jax.Device]) -> Placement:
    """Returns the shardings over a mesh of the given devices; with several processes, in the order of the processes."""
    if jax.process_count() == 1:
        mesh = jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    else:
        # jax.make_mesh orders TPUs by their place in the network, but the processes' parts of a batch, and the carries
        # of its streams in a checkpoint, are joined in the order of the processes.
        ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
        mesh = Mesh(np.array(ordered), (_AXIS,), axis_types=(AxisType.Auto,))
    return Placement(replicated=NamedSharding(mesh, P()), divided=NamedSharding(mesh, _BATCH))


def state_shardings(state: Any, placement: Placement, parallel: str) -> Any:
    """Returns a tree with the sharding of each leaf `[S, ...]` of a state, of parameters, or of their shapes.

    With "fsdp", a leaf is divided along the longest axis, except `S`, whose size is a multiple of the device count;
    a leaf without such an axis is replicated. With any other `parallel`, all leaves are replicated. The carry of a
    state, `[S, B, ...]`, is divided as the batch is.
    """
    mesh, count = placement.divided.mesh, placement.divided.num_devices

    def place(leaf: Any) -> NamedSharding:
        sizes = np.shape(leaf)
        axes = [axis for axis in range(1, len(sizes)) if sizes[axis] % count == 0]
        if parallel != "fsdp" or not axes:
            return placement.replicated
        longest = max(axes, key=lambda axis: sizes[axis])
        return NamedSharding(mesh, P(*[None] * longest, _AXIS))

    shardings = jax.tree.map(place, state)
    if isinstance(state, TrainState):
        shardings = shardings._replace(carry=jax.tree.map(lambda _: placement.divided, state.carry))
    return shardings


def place_batch(batch: Batch, placement: Placement) -> Batch:
    """Places a batch on the devices: divided if `B` is a multiple of their number, else replicated."""
    size = np.shape(batch.mask)[1]
    divisible = size % placement.divided.num_devices == 0
    return to_devices(batch, placement.divided if divisible else placement.replicated)


def pad_batch(batch: Batch, multiple: int) -> Batch:
    """Repeats the last example of a batch, with all its steps masked, until `B` is a multiple of `multiple`."""
    missing = -np.shape(batch.mask)[1] % multiple
    if not missing:
        return batch

    def pad(leaf: np.ndarray, mode: Literal["edge", "constant"]) -> np.ndarray:
        return np.pad(leaf, np.array([(0, 0), (0, missing), *[(0, 0)] * (leaf.ndim - 2)]), mode=mode)

    inputs, targets = jax.tree.map(lambda leaf: pad(leaf, "edge"), (batch.inputs, batch.targets))
    masks = jax.tree.map(lambda leaf: pad(leaf, "constant"), batch._replace(inputs=None, targets=None))
    return masks._replace(inputs=inputs, targets=targets)


def map_seeds(function: Callable, devices: Sequence[jax.Device]) -> Callable:
    """Maps a function `(state, batch) -> ...` of one seed over all seeds, with state leaves `[S, ...]` and one batch.

    Uses `jax.vmap`, except on a CPU, where `jax.lax.map` runs the seeds in sequence: a batch of weight matrices makes
    the CPU's small products slower (`python -m launch.benchmark --suite=seeds`).
    """
    if devices[0].platform == "cpu":
        return lambda state, batch: jax.lax.map(lambda one: function(one, batch), state)
    return jax.vmap(function, in_axes=(0, None))


def make_parallel_update(
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
) -> Callable[[TrainState, Batch | None], tuple[TrainState, UpdateMetrics]]:
    """Returns the compiled update of all seeds; state leaves `[S, ...]`, batch leaves `[T, B, ...]` for all seeds.

    The state argument is donated. Every value of `parallel` gives the same numbers as a single device.

    Args:
      graphdef: the model without its parameters; see `make_update` for details of this and the next arguments.
      task: the task.
      optimizer: the optimiser.
      meta_weight: weight of the meta loss.
      batch_size: over all devices.
      accumulate: parts per device.
      devices: devices that share the batch.
      parallel: "jit": the compiler divides the work along the batch. "pmap": the sums over devices are explicit, and
        each device samples the whole batch and selects its part. "fsdp": as "jit", with parameters and optimiser state
        divided over the devices as well (`state_shardings`) and gathered where a product needs them.
      state: for "fsdp", a state or its shapes.

    Raises:
      ValueError: if `parallel` is unknown, the batch size is not a multiple of the number of devices, or "fsdp" has no
        `state`.
    """
    count = len(devices)
    check_sizes(batch_size=batch_size)
    if batch_size % count:
        raise ValueError(f"batch_size must be a multiple of the {count} devices, got {batch_size=}.")
    check_choice("parallel", parallel, PARALLEL)
    if parallel == "pmap" and jax.process_count() > 1:
        raise ValueError("parallel='pmap' needs a single process; use parallel='jit' or 'fsdp' with several.")
    if parallel == "fsdp" and state is None:
        raise ValueError("parallel='fsdp' divides the state, and needs it or its shapes: pass state=.")
    placement = make_placement(devices)

    make = functools.partial(
        make_update, meta_weight=meta_weight, batch_size=batch_size, accumulate=accumulate, devices=devices
    )

    def seeds_update(divide: Callable[[Batch], Batch], axis_name: str | None = None) -> Callable:
        return map_seeds(make(graphdef, task, optimizer, divide=divide, axis_name=axis_name), devices)

    if parallel != "pmap":
        kept = _with_carry(placement.replicated, placement.divided)
        if parallel == "fsdp":
            kept = state_shardings(state, placement, parallel)
        return jax.jit(
            seeds_update(lambda batch: jax.lax.with_sharding_constraint(batch, placement.divided)),
            in_shardings=(kept, placement.divided),
            out_shardings=(kept, placement.replicated),
            donate_argnums=0,
        )

    part = batch_size // count

    def own_part(batch: Batch) -> Batch:
        start = jax.lax.axis_index(_AXIS) * part
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, part, axis=1), batch)

    mapped = jax.pmap(
        seeds_update(own_part, _AXIS),
        axis_name=_AXIS,
        in_axes=(_with_carry(None, 1), 1),
        out_axes=(_with_carry(None, 1), None),
        devices=devices,
        donate_argnums=0,
    )

    def pmap_update(state: TrainState, batch: Batch | None) -> tuple[TrainState, UpdateMetrics]:
        split = lambda tree: jax.tree.map(lambda leaf: _split_devices(leaf, count), tree)  # noqa: E731
        # pmap needs an array to divide; a task that samples ignores it
        own = np.zeros((1, count)) if batch is None else split(batch)
        state, metrics = mapped(state._replace(carry=split(state.carry)), own)
        return state._replace(carry=jax.tree.map(_join_devices, state.carry)), metrics

    return pmap_update


def _with_carry(other: Any, carry: Any) -> TrainState:
    """Returns a prefix of a state: one value for the carry, another for all other fields."""
    return TrainState(**dict.fromkeys(TrainState._fields, other))._replace(carry=carry)


def _join_devices(leaf: Any) -> Any:
    """Reshapes `[S, devices, B / devices, ...]` to `[S, B, ...]`."""
    return leaf.reshape(leaf.shape[0], -1, *leaf.shape[3:])


def _split_devices(leaf: Any, count: int) -> Any:
    """Reshapes `[T, B, ...]` to `[T, devices, B / devices, ...]`."""
    steps, size = leaf.shape[:2]
    return leaf.reshape(steps, count, size // count, *leaf.shape[2:])
