"""Benchmarks of the execution forms. Shape letters: `T` steps, `B` batch, `d` width, `H` heads.

A suite is a function that takes the devices and yields groups of candidates; its other arguments are the sizes.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from launch.bench.measure import Candidate, Group, Program, Row, compile_program, dividing, with_ratios
from mnm_jax import (
    MNMCell,
    choose_form,
    choose_micro_batch,
    gradient_memory,
    local_memory,
    unroll,
    value_and_grad,
)

FORMS = ("plain", "factored", "reversible", "auto")
MEMORIES = {"local": local_memory, "gradient": gradient_memory}
_LAYERS = 3
_AXIS = "batch"
_BATCH = P(None, _AXIS)  # [T, B, ...]

Devices = Sequence[jax.Device]


def training_step(
    devices: Devices,
    *,
    rules: Sequence[str] = ("local", "gradient"),
    forms: Sequence[str] = FORMS,
    heads: Sequence[int] = (1, 4),
    steps: Sequence[int] = (16, 32, 128, 512),
    batch: int = 64,
    width: int = 128,
) -> Iterator[Group]:
    """Yields a group per rule, number of heads and length: value and gradient of a whole sequence by every form."""
    for rule in rules:
        for h in heads:
            for t in steps:
                sizes = {"heads": h, "steps": t, "batch": batch, "width": width}
                candidates = [_candidate(devices, {"rule": rule, "form": form} | sizes) for form in forms]
                yield Group(candidates, partial(with_ratios, field="form", reference="plain"))


def many_heads(
    devices: Devices, *, heads: Sequence[int] = (8, 16), steps: Sequence[int] = (32, 128), **sizes: Any
) -> Iterator[Group]:
    """Yields the groups of `training_step` with more heads, in the forms "plain" and "auto" only."""
    yield from training_step(devices, forms=("plain", "auto"), heads=heads, steps=steps, **sizes)


def scaling(
    devices: Devices,
    *,
    steps: Sequence[int] = (64, 256, 1024, 2048, 4096, 8192),
    widths: Sequence[int] = (64, 128, 256, 512),
    heads: Sequence[int] = (1, 2, 4, 8, 16),
    plain_steps: int = 256,
) -> Iterator[Group]:
    """Yields groups that vary `T`, `d` and `H` one at a time, for the form "auto" with the local rule.

    "auto" is compared with "plain" up to `plain_steps` steps, and with "reversible" without checkpoints beyond.
    """
    shapes = [("steps", {"heads": h, "steps": t, "batch": 8, "width": 128}) for h in (1, 4) for t in steps]
    shapes += [("width", {"heads": 1, "steps": 64, "batch": 16, "width": d}) for d in widths]
    shapes += [("heads", {"heads": h, "steps": 32, "batch": 16, "width": 128}) for h in heads]
    for against, sizes in shapes:
        forms = ("plain", "auto") if sizes["steps"] <= plain_steps else ("reversible", "auto")
        fields = {"against": against, "rule": "local"}
        yield Group([_candidate(devices, fields | {"form": form} | sizes) for form in forms], _with_time_per_step)


def limit(
    devices: Devices, *, heads: int = 4, steps: int = 32, batch: int = 64, width: int = 128, product: int = 2048
) -> Iterator[Group]:
    """Yields one group: the forms, and one large matrix product per device, whose GFLOP/s are the cores' limit."""
    sizes = {"heads": heads, "steps": steps, "batch": batch, "width": width}
    forms = ("factored", "reversible", "auto")
    candidates = [_candidate(devices, {"rule": "local", "form": form} | sizes) for form in forms]
    fields = {"rule": None, "form": "product", "heads": None, "steps": None, "batch": len(devices), "width": product}
    candidates.append(Candidate(fields, partial(_product, devices, product)))
    flops = steps * batch * step_flops(heads=heads, width=width, layers=_LAYERS)
    yield Group(candidates, partial(_with_rates, flops=flops, product_flops=len(devices) * 2 * product**3))


def step_flops(*, heads: int, width: int, layers: int) -> int:
    """Returns the floating point operations of one step of one example, forward and backward, with the local rule.

    All sizes are `width` = d: inputs, controller, keys, values, and the `layers` = L layers of the memory. For every
    form the products of the dense algorithm are counted, with two operations per multiply-add.

        memory, in rows of L d^2 multiply-adds
            forward    3 H products with the weights (the write key before the write; after it, the write key and
                       the read key), H outer products of the write
            backward   3 H products with the transposed weights, 3 H outer products for the weights' cotangent,
                       2 H products of the pairs with that cotangent, H outer products that undo the write
        controller and maps, once forward and twice backward
            LSTM       2 d -> 4 d and d -> 4 d        interaction  d -> d + 3 H d        targets  H rows d -> L d
    """
    memory = (3 + 1) * heads + (3 + 3 + 2 + 1) * heads
    maps = (2 + 1) * 4 + (1 + 3 * heads) + heads * layers
    return 2 * width**2 * (memory * layers + 3 * maps)


def compile_step(cell: nnx.RNNCellBase, form: str, inputs: jax.Array, devices: Devices) -> Program:
    """Compiles value and gradient of mean(features^2) + mean(meta loss) with respect to all parameters of a cell.

    A cell whose outputs are an array has no meta loss.

    XLA runs the small operations of one CPU device on one core. The batch is therefore divided over the largest number
    of devices that divides it, for every form alike. The form "plain" differentiates a device's share as a whole; the
    others run as in the training program, where a device processes its share in micro-batches.

    Args:
      cell: the cell.
      form: an execution form of `mnm_jax.unroll`.
      inputs: `[T, B, D]`.
      devices: the devices to use.
    """
    devices = dividing(devices, inputs.shape[1])
    mesh = jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    graphdef, params = nnx.split(cell)

    def objective(params: Any, inputs: jax.Array) -> jax.Array:
        _, outputs = unroll(nnx.merge(graphdef, params), None, inputs, form=form)
        features = getattr(outputs, "features", outputs)
        meta_loss = getattr(outputs, "meta_loss", jnp.zeros(()))
        return jnp.mean(jnp.square(features)) + jnp.mean(meta_loss)

    micro_batch = None if form == "plain" else choose_micro_batch(cell, devices[0].platform)
    step = value_and_grad(objective, batch_axis=1, reduction="mean", micro_batch=micro_batch, devices=devices)
    params = jax.device_put(params, NamedSharding(mesh, P()))
    inputs = jax.device_put(inputs, NamedSharding(mesh, _BATCH))
    return compile_program(step, (params, inputs), len(devices))


def _candidate(devices: Devices, fields: Mapping[str, Any]) -> Candidate:
    def make() -> MNMCell:
        d = fields["width"]
        memory = MEMORIES[fields["rule"]](d, d, hidden_sizes=(d,) * (_LAYERS - 1))
        return MNMCell(d, d, memory, heads=fields["heads"], rngs=nnx.Rngs(0))

    def prepare() -> Program:
        shape = fields["steps"], fields["batch"], fields["width"]
        return compile_step(make(), fields["form"], jax.random.normal(jax.random.key(0), shape), devices)

    cell = nnx.eval_shape(make)  # the choice of a form depends on sizes alone
    return Candidate(fields, prepare, {"chosen": choose_form(cell, fields["steps"], form=fields["form"])})


def _product(devices: Devices, size: int) -> Program:
    """Compiles one product of two float32 matrices on every device."""
    mesh = jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    multiply = jax.shard_map(lambda a, b: (a[0] @ b[0])[None], mesh=mesh, in_specs=P(_AXIS), out_specs=P(_AXIS))
    keys = jax.random.split(jax.random.key(0))
    matrices = [jax.random.normal(key, (len(devices), size, size), jnp.float32) for key in keys]
    return compile_program(multiply, jax.device_put(matrices, NamedSharding(mesh, P(_AXIS))), len(devices))


def _with_time_per_step(rows: list[Row]) -> list[Row]:
    """Returns the rows with ratios to "plain" and microseconds_per_step."""

    def microseconds(row: Row) -> float | None:
        return None if row["milliseconds"] is None else 1e3 * row["milliseconds"] / row["steps"]

    rows = with_ratios(rows, "form", "plain")
    return [row | {"microseconds_per_step": microseconds(row)} for row in rows]


def _with_rates(rows: list[Row], *, flops: int, product_flops: int) -> list[Row]:
    """Returns the rows with gflop, gflop_per_second, and fraction_of_product, the share of the product's rate."""

    def rated(row: Row) -> Row:
        gflop = (product_flops if row["form"] == "product" else flops) / 1e9
        rate = None if row["milliseconds"] is None else 1e3 * gflop / row["milliseconds"]
        return row | {"gflop": gflop, "gflop_per_second": rate}

    rows = [rated(row) for row in rows]
    (most,) = (row["gflop_per_second"] for row in rows if row["form"] == "product")

    def fraction(row: Row) -> float | None:
        return row["gflop_per_second"] / most if row["gflop_per_second"] and most else None

    return [row | {"fraction_of_product": fraction(row)} for row in rows]
