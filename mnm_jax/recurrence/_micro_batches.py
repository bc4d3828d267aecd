"""Value and gradient of a batch computed in micro-batches, whose fast weights stay in the cache, on all cores.

The fast weights of a neural memory and their cotangents are read and written at every step of a sequence. The weights
of a whole batch exceed a CPU's cache, and moving them then takes longer than computing with them.

Shape letters: `T` time steps, `B` examples.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mnm_jax._checks import check_choice, check_flags, check_functions, check_sizes
from mnm_jax._params import is_key, leaf_names
from mnm_jax._vary import vary_alike, zeros_alike
from mnm_jax.recurrence._protocol import MemoryCell

Array = jax.Array

REDUCTIONS = ("sum", "mean")
# Bytes of fast weights and cotangents per micro-batch. Measured: twice as many and half as many were not faster.
CACHE_BYTES = 4 * 2**20
# Micro-batches of this size are not divided further: the products with slow weights would be too small to be fast.
MIN_EXAMPLES = 8
_AXIS = "examples"


def choose_micro_batch(cell: nnx.Module | None, platform: str | None = None) -> int | None:
    """Returns the number of examples whose fast weights and cotangents fit into 4 MiB of a CPU's cache, at least 8.

    Returns None, which stands for a whole batch at once, for another platform and for a cell without fast weights.

    Args:
      cell: the model's cell; only a `MemoryCell` has fast weights.
      platform: the platform of the devices, such as "cpu"; None: JAX's default.

    Examples:
      >>> from mnm_jax import MNMCell, choose_micro_batch, local_memory
      >>> cell = MNMCell(3, 8, local_memory(128, 128, hidden_sizes=(128,)), rngs=nnx.Rngs(0))
      >>> choose_micro_batch(cell, "cpu"), choose_micro_batch(cell, "tpu")
      (16, None)
    """
    if (platform or jax.default_backend()) != "cpu" or not isinstance(cell, MemoryCell):
        return None
    weights = jax.tree.leaves(cell.memory_params.get_value().weights)
    return max(MIN_EXAMPLES, CACHE_BYTES // (2 * sum(leaf.size * leaf.dtype.itemsize for leaf in weights)))


def value_and_grad(
    loss: Callable,
    *,
    batch_axis: Any,
    reduction: str,
    has_aux: bool = False,
    micro_batch: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Callable:
    """Returns `jax.value_and_grad(loss)`, computed in micro-batches: in sequence per device, on all devices at once.

    If micro-batch g has `B_g` of the `B` examples:

        "sum":   value = sum_g loss(params, batch_g)               and the gradient likewise
        "mean":  value = sum_g B_g / B * loss(params, batch_g)     and the gradient likewise

    These are the value and the gradient of the whole batch if the loss is a sum over examples, or a mean in which every
    example has the same weight, and no example influences another's term. A mean over unmasked steps is neither, since
    examples differ in length: use "sum", and divide by the number of unmasked steps of the whole batch, computed
    outside of the loss. A loss with statistics over the batch, as in batch normalisation, or with a random key that it
    closes over, gives another result, which is not detected.

    The function may be called inside `jax.jit`, and differentiated again.

    Args:
      loss: `(params, *batch) -> value`, or `(value, aux)` with `has_aux`. `params` is any pytree of floating-point
        arrays, such as the state of `nnx.split(model, nnx.Param)`.
      batch_axis: the axis of the examples in every leaf of `*batch`: an integer, or as `in_axes` of `jax.vmap` a tuple
        with an entry per argument, each an integer, a pytree of integers, or None for arrays that all examples share.
        A random key must not be shared, since its numbers would be the same in every micro-batch: pass a key per
        example, `jax.random.split(key, B)`.
      reduction: "sum" or "mean".
      has_aux: whether the loss returns auxiliary outputs. A leaf whose shape depends on the number of examples is
        concatenated along that axis, in the order of the batch; other leaves are reduced as the value is.
      micro_batch: largest number of examples per device that are processed at once, as `choose_micro_batch` returns it.
        None: all. Equal micro-batches are preferred, of at least half this size; otherwise the last one is smaller.
      devices: devices that share the batch: the first n, for the largest n that divides `B`. Arguments must not be
        committed to other devices. None, or n = 1: the devices of the surrounding program. A CPU is one device, which
        hardly uses a second core for a cell; `jax.config.update("jax_num_cpu_devices", 2)`, before the first use of
        JAX, makes two devices of it.

    Returns:
      `(params, *batch) -> (value, gradient)`, or `((value, aux), gradient)` with `has_aux`.

    Raises:
      TypeError: for an argument of the wrong kind, a value that is not a floating-point number, a shared random key, or
        with "mean" an auxiliary output of integers or bools that would be averaged.
      ValueError: for leaves that differ in their number of examples, a `batch_axis` that an array does not have, an
        auxiliary output with several axes of examples or one joined with another axis, or another reduction.

    Examples:
      >>> from mnm_jax import MNMCell, choose_micro_batch, local_memory, unroll, value_and_grad
      >>> cell = MNMCell(3, 8, local_memory(4, 4, hidden_sizes=(4,)), rngs=nnx.Rngs(0))
      >>> graphdef, params = nnx.split(cell)
      >>> def loss(params, inputs, mask):
      ...     carry, outputs = unroll(nnx.merge(graphdef, params), None, inputs, mask=mask)
      ...     return jnp.sum(outputs.features**2)
      >>> step = value_and_grad(loss, batch_axis=1, reduction="sum", micro_batch=choose_micro_batch(cell))
      >>> value, gradient = jax.jit(step)(params, jnp.ones((5, 64, 3)), jnp.ones((5, 64), bool))
    """
    check_functions(loss=loss)
    check_choice("reduction", reduction, REDUCTIONS)
    check_flags(has_aux=has_aux)
    if micro_batch is not None:
        check_sizes(micro_batch=micro_batch)
    shared_by = _check_devices(devices)
    full = loss if has_aux else lambda *args: (loss(*args), ())
    one = jax.value_and_grad(full, has_aux=True)

    def run(params: Any, *batch: Any) -> Any:
        batch = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf), batch)
        leaves, tree = jax.tree.flatten(batch)
        axes, count = _find_axes(batch_axis, batch)
        if export.is_symbolic_dim(count) and (micro_batch or shared_by):
            raise ValueError(
                f"micro_batch and devices need a number of examples, got the symbolic size {count}: leave both out."
            )
        sharing = _dividing(shared_by, count)
        parts = _divide(count // len(sharing), micro_batch)
        if len(sharing) == 1 and parts == [(1, count)]:
            (value, aux), gradient = one(params, *batch)
            return ((value, aux) if has_aux else value), gradient

        of_leaves = lambda function: lambda params, leaves: function(params, *jax.tree.unflatten(tree, leaves))  # noqa: E731
        split = _plan(of_leaves(full), params, leaves, axes, parts, count, reduction)
        compute: Callable = partial(_sum_parts, of_leaves(one), split)
        if len(sharing) > 1:
            compute = _share(compute, split, sharing)
        (value, gradient, reduced), kept = compute(params, leaves)
        if not has_aux:
            return value, gradient
        left = iter(reduced), iter(kept)
        ordered = [next(left[axis is not None]) for axis in split.aux_axes]
        return (value, jax.tree.unflatten(split.aux_tree, ordered)), gradient

    return run


class _Split(NamedTuple):
    """The micro-batches of a batch, and what becomes of their outputs.

    Attributes:
      axes: axis of the examples per leaf of the batch; None for a shared leaf.
      parts: the micro-batches of a device, as `_divide` returns them.
      examples: number of examples of the batch.
      mean: whether values are averaged over the examples; otherwise they are added.
      aux_axes: axis of the examples per auxiliary output; None for one that is reduced as the value is.
      aux_tree: structure of the auxiliary outputs.
      zeros: value, gradient and reduced outputs of no examples.
    """

    axes: list[int | None]
    parts: list[tuple[int, int]]
    examples: int
    mean: bool
    aux_axes: list[int | None]
    aux_tree: Any
    zeros: Any

    @property
    def kept_axes(self) -> list[int]:
        """The axis of the examples of each auxiliary output that is concatenated."""
        return [axis for axis in self.aux_axes if axis is not None]


def _plan(
    full: Callable,
    params: Any,
    leaves: Sequence[Array],
    axes: list[int | None],
    parts: list[tuple[int, int]],
    count: int,
    reduction: str,
) -> _Split:
    """Returns the split of a batch; `full` is `(params, leaves) -> (value, aux)`."""
    examples = parts[0][1]
    value, aux = jax.eval_shape(
        full, params, [_cut(leaf, axis, 0, examples) for leaf, axis in zip(leaves, axes, strict=True)]
    )
    whole = jax.eval_shape(full, params, leaves)[1] if any(leaf.shape for leaf in jax.tree.leaves(aux)) else aux
    aux_axes = _find_aux_axes(aux, whole, (examples, count), reduction)
    reduced = [leaf for leaf, axis in zip(jax.tree.leaves(aux), aux_axes, strict=True) if axis is None]
    value, gradient, reduced = zeros_alike((value, params, reduced))
    value, reduced = vary_alike((value, reduced, params, leaves))[:2]
    return _Split(
        axes=axes,
        parts=parts,
        examples=count,
        mean=reduction == "mean",
        aux_axes=aux_axes,
        aux_tree=jax.tree.structure(aux),
        zeros=(value, gradient, reduced),
    )


def _share(compute: Callable, split: _Split, devices: Sequence[jax.Device]) -> Callable:
    """Returns `compute` for a batch of which every device has an equal part."""
    mesh = jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    along = lambda axis: P() if axis is None else P(*[None] * axis, _AXIS)  # noqa: E731

    def sum_over_devices(params: Any, leaves: Sequence[Array]) -> tuple[Any, list[Array]]:
        total, kept = compute(params, leaves)
        return jax.lax.psum(total, _AXIS), kept

    return jax.shard_map(
        sum_over_devices,
        mesh=mesh,
        in_specs=(P(), [along(axis) for axis in split.axes]),
        out_specs=(P(), [along(axis) for axis in split.kept_axes]),
        check_vma=False,
    )


def _sum_parts(one: Callable, split: _Split, params: Any, leaves: Sequence[Array]) -> tuple[Any, list[Array]]:
    """Returns value, gradient and reduced outputs of a device's examples, and the concatenated outputs.

    `one` is `(params, leaves) -> ((value, aux), gradient)`.
    """
    results, start = [], 0
    for number, size in split.parts:
        stop = start + number * size
        own = [_cut(leaf, axis, start, stop) for leaf, axis in zip(leaves, split.axes, strict=True)]
        results.append(_scan(one, split, params, own, number, size))
        start = stop
    totals, kept = zip(*results, strict=True)
    total = jax.tree.map(lambda *terms: sum(terms[1:], terms[0]), *totals)
    return total, [jnp.concatenate(x, axis) for x, axis in zip(zip(*kept, strict=True), split.kept_axes, strict=True)]


def _reduce(one: Callable, split: _Split, params: Any, leaves: Sequence[Array], size: int) -> tuple[Any, list[Array]]:
    """Returns value, gradient and reduced outputs of a micro-batch of `size` examples, and the outputs to keep."""
    (value, aux), gradient = one(params, leaves)
    outputs = list(zip(jax.tree.leaves(aux), split.aux_axes, strict=True))
    value, reduced = vary_alike((value, [x for x, axis in outputs if axis is None], params, leaves))[:2]
    total = value, gradient, reduced
    if split.mean:
        total = jax.tree.map(lambda leaf: leaf * jnp.asarray(size / split.examples, leaf.dtype), total)
    return total, [leaf for leaf, axis in outputs if axis is not None]


def _scan(
    one: Callable, split: _Split, params: Any, leaves: Sequence[Array], number: int, size: int
) -> tuple[Any, list[Array]]:
    """Returns the sums over `number` micro-batches of `size` examples, and the outputs to concatenate.

    Micro-batch g holds the examples g, g + number, ... If the compiler divides the batch over devices, every device
    thus holds a part of every micro-batch.
    """
    if number == 1:
        return _reduce(one, split, params, leaves, size)

    def divide(leaf: Array, axis: int) -> Array:
        parts = leaf.reshape(*leaf.shape[:axis], size, number, *leaf.shape[axis + 1 :])
        return jnp.moveaxis(parts, axis + 1, 0)

    def join(leaf: Array, axis: int) -> Array:
        parts = jnp.moveaxis(leaf, 0, axis + 1)
        return parts.reshape(*parts.shape[:axis], number * size, *parts.shape[axis + 2 :])

    def add(total: Any, xs: list[Array]) -> tuple[Any, list[Array]]:
        own = iter(xs)
        new, kept = _reduce(one, split, params, [leaf if axis is None else next(own) for leaf, axis in divided], size)
        return jax.tree.map(jnp.add, total, new), kept

    divided = list(zip(leaves, split.axes, strict=True))
    xs = [divide(leaf, axis) for leaf, axis in divided if axis is not None]
    total, kept = jax.lax.scan(add, split.zeros, xs)
    return total, [join(leaf, axis) for leaf, axis in zip(kept, split.kept_axes, strict=True)]


def _find_axes(batch_axis: Any, batch: tuple[Any, ...]) -> tuple[list[int | None], int]:
    """Returns the axis of the examples per leaf, None for a shared leaf, and the number of examples."""
    axes: list[int | None] = []
    prefix = (batch_axis,) * len(batch) if isinstance(batch_axis, int) else batch_axis
    prefix = tuple(prefix) if isinstance(prefix, list) else prefix
    spread = lambda axis, part: axes.extend([axis] * len(jax.tree.leaves(part)))  # noqa: E731
    try:
        jax.tree.map(spread, prefix, batch, is_leaf=lambda axis: axis is None)
    except ValueError as error:
        raise ValueError(
            f"batch_axis must be an axis, or a tuple with an entry for each of the {len(batch)} arguments after the "
            f"parameters, got {batch_axis!r}: an entry is an axis, None, or a tree of these that fits the argument."
        ) from error
    sizes = {}
    for index, (name, leaf, axis) in enumerate(zip(leaf_names(batch), jax.tree.leaves(batch), axes, strict=True)):
        if axis is None:
            if is_key(leaf) or (leaf.dtype == jnp.uint32 and leaf.shape == (2,)):
                raise TypeError(
                    f"the random key batch{name} must not be shared by the examples, since all micro-batches would "
                    "draw the same numbers: pass jax.random.split(key, B) and its axis 0, a key per example."
                )
            continue
        check_sizes(least=-leaf.ndim, batch_axis=axis)
        if axis >= leaf.ndim:
            raise ValueError(f"batch_axis must be an axis of every array, got {axis} for batch{name} {leaf.shape}.")
        axes[index] = axis % leaf.ndim
        sizes[name] = leaf.shape[axis]
    if len(set(sizes.values())) != 1:
        found = ", ".join(f"batch{name}: {size}" for name, size in sizes.items())
        raise ValueError(f"all arrays of the batch must have the same number of examples, got {found or 'no array'}.")
    return axes, next(iter(sizes.values()))


def _find_aux_axes(part: Any, whole: Any, examples: tuple[int, int], reduction: str) -> list[int | None]:
    """Returns the axis of the examples per auxiliary output, found by its shapes; None for one to be reduced.

    `examples` are the numbers of examples of the micro-batch and of the batch with which the outputs were computed.
    """
    axes: list[int | None] = []
    for name, a, b in zip(leaf_names(part), jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
        changed = [axis for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n]
        if len(changed) > 1:
            raise ValueError(f"auxiliary output {name!r} must have one axis of examples, got shape {b.shape}.")
        if changed and (a.shape[changed[0]], b.shape[changed[0]]) != examples:
            raise ValueError(
                f"auxiliary output {name!r} must have an axis of the {examples[1]} examples alone, got shape {b.shape}:"
                " return it before a reshape that joins axes."
            )
        numbers = jnp.inexact if reduction == "mean" else jnp.number
        if not changed and not jnp.issubdtype(a.dtype, numbers):
            raise TypeError(
                f"auxiliary output {name!r} of dtype {a.dtype} has no {reduction} over micro-batches: "
                "return it per example, or as floating-point numbers."
            )
        axes.append(changed[0] if changed else None)
    return axes


def _check_devices(devices: Any) -> list[jax.Device]:
    """Returns devices as a list, empty for None; raises TypeError for anything but a sequence of devices."""
    found = list(devices) if isinstance(devices, Iterable) else devices
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(device, jax.Device) for device in found):
        raise TypeError(f"devices must be a list of devices, such as jax.devices(), got {devices!r}.")
    return found


def _dividing(devices: Sequence[jax.Device], count: int) -> Sequence[Any]:
    """Returns the largest number of devices that divides `count`; [None] for the devices of the program."""
    return devices[: max((n for n in range(1, len(devices) + 1) if n <= count and count % n == 0), default=0)] or [None]


def _divide(count: int, largest: int | None) -> list[tuple[int, int]]:
    """Returns the micro-batches of `count` examples as pairs (number, examples of each).

    The number is the smallest divisor of `count` that gives micro-batches of at most `largest` examples. If these would
    have less than half of `largest`, all micro-batches have `largest` examples, and one more has the rest.
    """
    if largest is None or count <= largest:
        return [(1, count)]
    fewest = -(-count // largest)
    for number in range(fewest, 2 * count // largest + 1):
        if count % number == 0:
            return [(number, count // number)]
    return [(count // largest, largest), (1, count % largest)]


def _cut(leaf: Any, axis: int | None, start: int, stop: int) -> Any:
    if axis is None or (start, stop) == (0, leaf.shape[axis]):
        return leaf
    return jax.lax.slice_in_dim(leaf, start, stop, axis=axis)
