"""Contracts of a cell as a program: derivatives, execution forms, compilation, devices, export, pickle and donation."""

import contextlib
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mnm_jax.cells import split_output
from mnm_jax.export import PLATFORMS
from mnm_jax.recurrence import choose_form, unroll
from mnm_jax.recurrence._carry import lacking_members
from mnm_jax.recurrence._fast.record import StepError
from mnm_jax.testing._cell_runs import (
    Cell,
    Gradients,
    Run,
    T,
    begin,
    cell_inputs,
    flagged,
    floats,
    gradient_of_start,
    largest,
    run,
    take_step,
    weights_of,
    with_floats,
)
from mnm_jax.testing._contract import assert_close, assert_derivatives, assert_equal, contract, require

Array = jax.Array


@contract
def check_cell_derivatives(cell: Cell) -> None:
    """Checks derivatives of first and second order against finite differences, over two steps, in float64.

    Both are checked along random directions: the first order in forward and in reverse mode, the second order as the
    forward-mode derivative of the gradient. The execution form is "plain", with which `check_cell_forms` compares the
    others.
    """
    inputs = cell_inputs(cell, steps=2, batch_size=1)
    require(inputs.dtype == jnp.float64, f"Finite differences need a cell in float64, got {inputs.dtype}.")

    def objective(given: Any) -> Array:
        leaves, inputs = given
        _, outputs = unroll(with_floats(cell, leaves), None, inputs, form="plain")
        features, meta_loss = split_output(outputs)
        value = jnp.sum(jnp.sin(features) * jnp.arange(1.0, 1 + features.shape[-1])[None, None])
        return value if meta_loss is None else value + jnp.sum(meta_loss)

    assert_derivatives(objective, (floats(cell), inputs), directions=2)


@contract
def check_cell_forms(cell: Cell) -> None:
    """Checks that all execution forms agree in values and gradients, or are refused by an error that names a remedy.

    "auto" must then equal "plain". A cell whose carry has a `MemoryState` must be a `MemoryCell`.
    """
    inputs = cell_inputs(cell)
    lacking = lacking_members(cell, cell.in_features)
    require(not lacking, f"A cell with a memory must be a MemoryCell, or it runs in no fast form: add {lacking}.")
    if choose_form(cell, T, form="reversible") == "plain":
        for form in ("factored", "reversible"):
            try:
                unroll(cell, None, inputs, form=form)
            except ValueError as error:
                require(form in str(error), f"The error must name the form {form!r}, got {error!r}.")
            else:
                raise AssertionError(f"A cell without execution forms runs in form={form!r}.")
        return
    mask = np.ones(inputs.shape[:2], bool)
    mask[3, 1] = mask[5, 0] = False
    plain = run(cell, None, inputs, weights_of(inputs), mask=mask, form="plain")
    try:
        reversible = run(cell, None, inputs, weights_of(inputs), mask=mask, form="reversible")
    except StepError:
        auto = run(cell, None, inputs, weights_of(inputs), mask=mask, form="auto")
        assert_close(auto, plain, scale=largest(plain.gradients))
        return
    assert_close(reversible, plain, scale=largest(plain.gradients))
    # The contracts over time also run "factored", with resets and from a given carry.
    factored = flagged(cell, inputs, mask=mask)
    of_cell, of_carry, of_inputs = factored.gradients
    of_cell = [a + b for a, b in zip(of_cell, gradient_of_start(cell, of_carry), strict=True)]
    found = factored._replace(gradients=Gradients(of_cell, [], of_inputs))
    assert_close(found, plain, scale=largest(plain.gradients))


def trace_cell_forms(cell: Cell) -> None:
    """Traces the fast execution forms with their gradients; raises the errors of all but refusals by name."""
    inputs = cell_inputs(cell)
    if choose_form(cell, T, form="reversible") == "plain":
        return
    for form in ("reversible", "factored"):
        with contextlib.suppress(StepError):
            run.eval_shape(cell, None, inputs, weights_of(inputs), form=form)


@contract
def check_cell_compilation(make_cell: Callable[..., Cell]) -> None:
    """Checks that new numbers, a returned carry, and a second, equal cell cause no recompilation.

    Args:
      make_cell: `make_cell(dtype=..., param_dtype=...)` returns the cell.
    """
    traces = []

    @jax.jit
    def trace(cell: Cell, carry: Any, inputs: Array) -> tuple[Any, Any]:
        traces.append(inputs.shape)
        return unroll(cell, carry, inputs)

    cell, equal = (nnx.eval_shape(partial(make_cell, dtype=jnp.float32, param_dtype=jnp.float32)) for _ in range(2))
    inputs = jax.ShapeDtypeStruct((3, 2, cell.in_features), jnp.float32)
    carry, _ = trace.eval_shape(cell, jax.eval_shape(partial(begin, batch_size=2), cell), inputs)
    trace.eval_shape(cell, carry, inputs)
    trace.eval_shape(equal, carry, inputs)
    require(len(traces) == 1, f"The run was traced {len(traces)} times.")


@contract
def check_cell_devices(cell: Cell) -> None:
    """Checks that a batch divided over devices gives the results and gradients of one device.

    The number of devices is the greatest common divisor of those available and the batch of 8. The batch is divided by
    the compiler, and by `jax.shard_map` with its default checks.
    """
    inputs, carry = cell_inputs(cell), begin(cell)
    flags = np.ones(inputs.shape[:2], bool)
    cotangents = [np.ones(leaf.shape, leaf.dtype) for leaf in floats(carry)]
    given = (cell, carry, inputs, cotangents, weights_of(inputs), flags, ~flags)
    program = lambda cell, carry, inputs, cotangents, weights, mask, reset: flagged(  # noqa: E731
        cell, inputs, carry, cotangents=cotangents, weights=weights, mask=mask, reset=reset
    )
    devices = math.gcd(len(jax.devices()), inputs.shape[1])
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    every, batch, examples = PartitionSpec(), PartitionSpec(None, "data"), PartitionSpec("data")
    specs = (every, examples, batch, examples, batch, batch, batch)
    divided = [jax.device_put(part, NamedSharding(mesh, spec)) for part, spec in zip(given, specs, strict=True)]
    out_specs = Run(carry=examples, outputs=batch, gradients=Gradients(every, examples, batch))
    expected = jax.device_get(program(*given))
    for way in (program, jax.jit(jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=out_specs))):
        found = way(*divided)
        shapes = {shard.data.shape[1] for shard in split_output(found.outputs)[0].addressable_shards}
        require(shapes == {inputs.shape[1] // devices}, f"A divided batch must give divided features, got {shapes}.")
        assert_close(jax.device_get(found), expected, scale=largest(expected.gradients))


@contract
def check_cell_export(cell: Cell) -> None:
    """Checks that a step exported by `jax.export`, for cpu, cuda and tpu, gives the same numbers after a round trip."""
    inputs = cell_inputs(cell)
    carry, inputs = flagged(cell, inputs).carry, np.asarray(inputs)[0]
    # Exported over flat leaves, so that a reader needs no registration of the cell's own types.
    leaves, tree = jax.tree.flatten((cell, carry, inputs))

    @jax.jit
    def program(*leaves: Array) -> list[Array]:
        cell, carry, inputs = jax.tree.unflatten(tree, leaves)
        return jax.tree.leaves(cell(carry, inputs))

    file = export.export(program, platforms=PLATFORMS)(*leaves).serialize()
    expected = jax.tree.leaves(take_step(cell, carry, inputs))
    assert_close(export.deserialize(file).call(*leaves), expected)


@contract
def check_cell_pickle(cell: Cell) -> None:
    """Checks that a run continues bit-equal after parameters and carry were pickled."""
    inputs = cell_inputs(cell)
    carry = flagged(cell, inputs).carry
    leaves, tree = jax.tree.flatten(cell)
    leaves, again = pickle.loads(pickle.dumps(jax.device_get((leaves, carry))))
    other = jax.tree.unflatten(tree, leaves)
    found, expected = (flagged(cell, inputs, carry) for cell, carry in ((other, again), (cell, carry)))
    assert_equal(found[:2], expected[:2])


@contract
def check_cell_donation(cell: Cell) -> None:
    """Checks that a fresh carry can be donated: every leaf has its own buffer, which no parameter uses."""
    add = lambda carry: jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), carry)  # noqa: E731
    for jit in (jax.jit, nnx.jit):
        expected = add(begin(cell, 1))
        assert_equal(jit(add, donate_argnums=0)(begin(cell, 1)), expected)
    deleted = [leaf.is_deleted() for leaf in jax.tree.leaves(cell)]
    require(not any(deleted), "A parameter is deleted when the carry is donated.")
