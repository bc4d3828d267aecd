"""Contracts of a cell as a program: derivatives, execution forms, compilation, devices, export and pickle."""

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
from jax.test_util import check_grads

from mnm_jax.cells import split_output
from mnm_jax.recurrence import choose_form, unroll
from mnm_jax.testing._cell_time import Cell, cell_inputs, features, run
from mnm_jax.testing._contract import assert_close, assert_equal, contract, require, sum_of_sines

Array = jax.Array


@contract
def check_derivatives(cell: Cell) -> None:
    """Checks derivatives of first and second order against finite differences, over two steps, in float64.

    The second order is checked as the forward-mode derivative of the gradient. The execution form is "plain";
    `check_forms` compares the others with it.
    """
    leaves, tree = jax.tree.flatten(cell)
    inputs = cell_inputs(cell, steps=2, batch_size=1)
    require(inputs.dtype == jnp.float64, f"Finite differences need a cell in float64, got {inputs.dtype}.")

    @jax.jit
    def objective(leaves: list[Array], inputs: Array) -> Array:
        _, outputs = unroll(jax.tree.unflatten(tree, leaves), None, inputs, form="plain")
        features, meta_loss = split_output(outputs)
        value = jnp.sum(jnp.sin(features) * jnp.arange(1.0, 1 + features.shape[-1])[None, None])
        return value if meta_loss is None else value + jnp.sum(meta_loss)

    # The error of a central difference is eps^2 times the third derivative, up to 1e5: the default eps is too large.
    check = partial(check_grads, args=(leaves, inputs), order=1, atol=1e-6, rtol=1e-6, eps=1e-6)
    check(objective, modes=("fwd", "rev"))
    check(jax.jit(jax.grad(objective, argnums=(0, 1))), modes=("fwd",))


@contract
def check_forms(cell: Cell) -> None:
    """Checks that all execution forms agree in values and gradients, or are refused by an error that names the form."""
    inputs = cell_inputs(cell)
    mask = np.ones(inputs.shape[:2], bool)
    mask[3, 1] = mask[5, 0] = False

    def differentiate(form: str) -> tuple[Any, Any]:
        def value(cell: Cell, inputs: Array) -> tuple[Array, Any]:
            result = unroll(cell, None, inputs, mask=jnp.asarray(mask), form=form)
            return sum_of_sines(result), result

        (_, result), gradients = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(cell, inputs)
        return result, jax.tree.leaves(gradients)

    if choose_form(cell, len(inputs), form="reversible") == "plain":
        for form in ("factored", "reversible"):
            try:
                unroll(cell, None, inputs, form=form)
            except ValueError as error:
                require(form in str(error), f"The error must name the form {form!r}, got {error!r}.")
            else:
                raise AssertionError(f"A cell without execution forms runs in form={form!r}.")
        return
    expected = differentiate("plain")
    largest = max(float(np.abs(leaf).max()) for leaf in expected[1])
    for form in ("factored", "reversible"):
        assert_close(differentiate(form), expected, scale=largest)


@contract
def check_compilation(make_cell: Callable[..., Cell]) -> None:
    """Checks that new numbers, a returned carry, and a second, equal cell cause no recompilation.

    Args:
      make_cell: `make_cell(dtype=..., param_dtype=...)` returns the cell.
    """
    traces = []

    @jax.jit
    def trace(cell: Cell, carry: Any, inputs: Array) -> tuple[Any, Any]:
        traces.append(inputs.shape)
        return unroll(cell, carry, inputs)

    cell, equal = (make_cell(dtype=jnp.float32, param_dtype=jnp.float32) for _ in range(2))
    inputs = cell_inputs(cell, steps=3, batch_size=2)
    carry, _ = trace(cell, cell.initialize_carry(inputs.shape[1:]), inputs)
    carry, _ = trace(cell, carry, 2 * inputs)
    trace(jax.tree.map(lambda leaf: 0.5 * leaf, equal), carry, inputs)
    require(len(traces) == 1, f"The run was traced {len(traces)} times.")


@contract
def check_devices(cell: Cell) -> None:
    """Checks that a batch divided over all devices gives the features and gradients of one device."""
    devices = len(jax.devices())
    inputs = cell_inputs(cell, steps=3, batch_size=devices)

    @jax.jit
    def differentiate(cell: Cell, inputs: Array) -> tuple[Array, list[Array]]:
        def value(cell: Cell, inputs: Array) -> tuple[Array, Array]:
            answers = features(cell, inputs)
            counts = jnp.arange(devices, dtype=answers.dtype)  # every example counts differently
            return jnp.sum(jnp.sin(answers) * counts[None, :, None]), answers

        (_, answers), gradients = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(cell, inputs)
        return answers, jax.tree.leaves(gradients)

    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    divided = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec(None, "data")))
    found = differentiate(jax.device_put(cell, NamedSharding(mesh, PartitionSpec())), divided)
    shapes = {shard.data.shape[:2] for shard in found[0].addressable_shards}
    require(shapes == {(3, 1)}, f"The features of a divided batch must be divided, got shards of {shapes}.")
    assert_close(jax.device_get(found), jax.device_get(differentiate(cell, inputs)))


@contract
def check_export(cell: Cell) -> None:
    """Checks that a step exported by `jax.export` gives the same numbers after it was written and read."""
    inputs = cell_inputs(cell, steps=1, batch_size=2)[0]
    carry, _ = cell(cell.initialize_carry(inputs.shape), inputs)
    # Exported over flat leaves, so that a reader needs no registration of the cell's own types.
    leaves, tree = jax.tree.flatten((cell, carry, inputs))

    @jax.jit
    def step(*leaves: Array) -> list[Array]:
        cell, carry, inputs = jax.tree.unflatten(tree, leaves)
        return jax.tree.leaves(cell(carry, inputs))

    file = export.export(step)(*leaves).serialize()
    assert_equal(export.deserialize(file).call(*leaves), step(*leaves))


@contract
def check_pickle(cell: Cell) -> None:
    """Checks that a run continues bit-equal after parameters and carry were pickled."""
    inputs = cell_inputs(cell)
    carry, _ = run(cell, inputs)
    graphdef, state = nnx.split(cell)
    state, again = pickle.loads(pickle.dumps(jax.device_get((nnx.to_pure_dict(state), carry))))
    other = nnx.merge(graphdef, jax.tree.map(jnp.zeros_like, nnx.split(cell)[1]))
    restored = nnx.state(other)
    nnx.replace_by_pure_dict(restored, state)
    nnx.update(other, restored)
    go_on = jax.jit(lambda cell, carry, inputs: unroll(cell, carry, inputs))
    assert_equal(go_on(other, again, inputs), go_on(cell, carry, inputs))
