"""Benchmark of a user's own jitted program against the training program."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from launch.bench.forms import MEMORIES, compile_step
from launch.bench.measure import Candidate, Group, Program, compile_program, with_ratios
from mnm_jax import MNMCell, choose_micro_batch, unroll, value_and_grad

_FORMS = ("training", "micro-batches", "jit", "plain")


def own_program(
    devices: Sequence[jax.Device],
    *,
    rules: Sequence[str] = ("local", "gradient"),
    heads: Sequence[int] = (1, 4),
    steps: Sequence[int] = (32, 128),
    batch: int = 64,
    width: int = 128,
) -> Iterator[Group]:
    """Yields a group per rule, number of heads and length: value and gradient of one loss, in four programs.

    "training" is the training program, whose arguments lie on all devices. The others get plain arrays, as a user's
    program does: "jit" is `jax.jit(jax.value_and_grad(loss))` with `unroll` on one device, "plain" the same with a scan
    over the cell, and "micro-batches" is `jax.jit(mnm_jax.value_and_grad(loss, ...))` on all devices.
    """
    for rule in rules:
        for h in heads:
            for t in steps:
                fields = {"rule": rule, "heads": h, "steps": t, "batch": batch, "width": width}
                candidates = [
                    Candidate({"form": form} | fields, partial(_prepare, devices, fields, form)) for form in _FORMS
                ]
                yield Group(candidates, partial(with_ratios, field="form", reference="training"))


def _prepare(devices: Sequence[jax.Device], fields: dict[str, Any], form: str) -> Program:
    d = fields["width"]
    memory = MEMORIES[fields["rule"]](d, d, hidden_sizes=(d, d))
    cell = MNMCell(d, d, memory, heads=fields["heads"], rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (fields["steps"], fields["batch"], d))
    if form == "training":
        return compile_step(cell, "auto", inputs, devices)
    graphdef, params = nnx.split(cell)

    def loss(params: Any, inputs: jax.Array) -> jax.Array:
        own = nnx.merge(graphdef, params)
        outputs: Any
        if form == "plain":
            _, outputs = jax.lax.scan(own, own.initialize_carry(inputs.shape[1:]), inputs)
        else:
            _, outputs = unroll(own, None, inputs)
        return jnp.mean(jnp.square(outputs.features)) + jnp.mean(outputs.meta_loss)

    if form != "micro-batches":
        return compile_program(jax.value_and_grad(loss), (params, inputs), 1)
    settings: Any = {"micro_batch": choose_micro_batch(cell, devices[0].platform), "devices": devices}
    return compile_program(
        value_and_grad(loss, batch_axis=1, reduction="mean", **settings), (params, inputs), len(devices)
    )
