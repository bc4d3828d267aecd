"""Contracts of a cell over time: its carry, mask, reset, causality, and extreme numbers.

Shape letters: `T` time steps, `B` examples, `D` input features, `F` output features.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax.cells import split_output
from mnm_jax.memory import GatedState, MemoryState
from mnm_jax.recurrence import unroll
from mnm_jax.testing._contract import (
    assert_close,
    assert_equal,
    assert_finite,
    contract,
    first_dtype,
    is_float,
    kinds,
    normal,
    require,
)

Array = jax.Array
Cell = Any  # an nnx.RNNCellBase with `in_features`, which its type does not declare
T, B = 6, 3


def cell_inputs(cell: Cell, steps: int = T, batch_size: int = B) -> Array:
    """Returns random inputs `[T, B, D]` in the dtype of the cell's carry."""
    dtype = first_dtype(jax.eval_shape(lambda: cell.initialize_carry((1, cell.in_features))))
    return normal((steps, batch_size, cell.in_features), dtype)


@jax.jit
def run(cell: Cell, inputs: Array, **flags: Any) -> tuple[Any, Any]:
    """Returns the last carry and the outputs of a new sequence."""
    return unroll(cell, cell.initialize_carry(inputs.shape[1:]), inputs, **flags)


@jax.jit
def features(cell: Cell, inputs: Array, **flags: Any) -> Array:
    """Returns the features `[T, B, F]` of a new sequence."""
    return split_output(run(cell, inputs, **flags)[1])[0]


@jax.jit
def _gradient_of_one_answer(cell: Cell, inputs: Array) -> Array:
    """Returns the derivative of the features of example 1 at step 3 with respect to all inputs."""
    return jax.grad(lambda inputs: jnp.sum(features(cell, inputs)[3, 1]))(inputs)


@jax.jit
def _gradient_of_unmasked(cell: Cell, inputs: Array, mask: Array) -> Array:
    return jax.grad(lambda inputs: jnp.sum(features(cell, inputs, mask=mask) ** 2))(inputs)


@jax.jit
def _everything_and_gradients(cell: Cell, inputs: Array) -> tuple[Array, Any]:
    """Returns the sum of all floating-point results of a run, and its gradients."""

    def value(cell: Cell, inputs: Array) -> Array:
        leaves = [leaf for leaf in jax.tree.leaves(run(cell, inputs)) if is_float(leaf)]
        return sum((jnp.sum(leaf) for leaf in leaves), start=jnp.zeros(()))

    return jax.value_and_grad(value, argnums=(0, 1))(cell, inputs)


@contract
def check_carry(cell: Cell) -> None:
    """Checks that shapes and dtypes of the carry are constant under a step, `lax.cond` and `vmap`."""
    inputs = cell_inputs(cell)[0]
    carry = cell.initialize_carry(inputs.shape)
    for leaf in jax.tree.leaves(carry):
        require(leaf.shape[:1] == (B,), f"Leaves of the carry must have shape [B, ...] with B = {B}, got {leaf.shape}.")
    new, _ = jax.eval_shape(cell, carry, inputs)
    require(kinds(new) == kinds(carry), f"The carry changes from {kinds(carry)} to {kinds(new)}.")
    either = jax.eval_shape(lambda go: jax.lax.cond(go, lambda: cell(carry, inputs)[0], lambda: carry), True)
    require(kinds(either) == kinds(carry), f"Under lax.cond the carry changes from {kinds(carry)} to {kinds(either)}.")
    many, _ = jax.eval_shape(jax.vmap(cell, (None, 0)), carry, jnp.stack([inputs, inputs]))
    expected = jax.tree.map(lambda leaf: ((2, *leaf.shape), leaf.dtype), carry)
    require(kinds(many) == expected, f"Under vmap the carry changes from {expected} to {kinds(many)}.")


@contract
def check_dtypes(make_cell: Callable[..., Cell]) -> None:
    """Checks that parameters have `param_dtype`, and carry and outputs `dtype`, to which inputs are cast.

    The dtypes are float32, bfloat16 parameters, and bfloat16 computation with float32 parameters. The weights of a
    neural memory in the carry keep `param_dtype`.

    Args:
      make_cell: `make_cell(dtype=..., param_dtype=...)` returns the cell.
    """
    for param_dtype, dtype in [(jnp.float32,) * 2, (jnp.bfloat16,) * 2, (jnp.float32, jnp.bfloat16)]:
        cell = make_cell(dtype=dtype, param_dtype=param_dtype)
        _check_dtype("parameters", nnx.state(cell, nnx.Param), param_dtype)
        carry = cell.initialize_carry((B, cell.in_features))
        is_memory = lambda node: isinstance(node, MemoryState | GatedState)  # noqa: E731
        nodes = jax.tree.leaves(carry, is_leaf=is_memory)
        _check_dtype("a memory's weights", [node.weights for node in nodes if is_memory(node)], param_dtype)
        _check_dtype("the carry", [node for node in nodes if not is_memory(node)], dtype)
        for given in (dtype, jnp.float32, jnp.int32):
            new, outputs = jax.eval_shape(cell, carry, jnp.zeros((B, cell.in_features), given))
            require(kinds(new) == kinds(carry), f"Inputs in {given} change the carry to {kinds(new)}.")
            _check_dtype("features", split_output(outputs)[0], dtype)


def _check_dtype(name: str, tree: Any, dtype: DTypeLike) -> None:
    found = {jnp.dtype(leaf.dtype).name for leaf in jax.tree.leaves(tree) if is_float(leaf)}
    require(found <= {jnp.dtype(dtype).name}, f"The dtype of {name} must be {jnp.dtype(dtype)}, got {sorted(found)}.")


@contract
def check_unroll(cell: Cell) -> None:
    """Checks that one run and a loop over steps agree, and two runs joined by the carry, these in gradients as well."""
    inputs = cell_inputs(cell, steps=4)
    # Each program is compiled apart and then used several times: compilation takes nearly all of the time.
    step = jax.jit(lambda cell, carry, now: cell(carry, now))
    run_two = jax.jit(unroll, static_argnames="checkpoint_every")

    def loop(cell: Cell, carry: Any, inputs: Array) -> tuple[Any, Any]:
        outputs = []
        for now in inputs:
            carry, output = step(cell, carry, now)
            outputs.append(output)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)

    def cut(cell: Cell, carry: Any, inputs: Array) -> tuple[Any, Any]:
        carry, first = run_two(cell, carry, inputs[:2])
        carry, second = run_two(cell, carry, inputs[2:], checkpoint_every=1)
        return carry, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), first, second)

    def differentiate(way: Callable) -> Any:
        def value(cell: Cell, inputs: Array) -> tuple[Array, Any]:
            carry, outputs = way(cell, cell.initialize_carry(inputs.shape[1:]), inputs)
            return jnp.sum(jnp.sin(split_output(outputs)[0])), (carry, outputs)

        (_, result), gradients = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(cell, inputs)
        return result, jax.tree.leaves(gradients)

    expected = differentiate(loop)
    assert_close(run(cell, inputs), expected[0])
    assert_close(differentiate(cut), expected)


@contract
def check_masking(cell: Cell) -> None:
    """Checks that padding, NaN included, changes no carry, output or later step and gets exactly zero gradient."""
    inputs = cell_inputs(cell)
    mask = np.ones(inputs.shape[:2], bool)
    mask[2] = False
    padded = jnp.where(mask[..., None], inputs, jnp.nan)
    kept = np.array([0, 1, 3, 4, 5])
    carry, outputs = run(cell, padded, mask=mask)
    expected_carry, expected = run(cell, inputs[kept], mask=mask[kept])
    assert_close(carry, expected_carry)
    assert_close(split_output(outputs)[0][kept], split_output(expected)[0])
    gradient = np.asarray(_gradient_of_unmasked(cell, padded, mask))
    require(np.all(gradient[2] == 0), "Padding gets a gradient that is not zero.")
    assert_finite(gradient)
    require(np.any(gradient[1] != 0), "Inputs before padding get no gradient.")
    nothing, _ = run(cell, padded, mask=np.zeros_like(mask))
    assert_equal(nothing, cell.initialize_carry(inputs.shape[1:]))
    first_two = mask & (np.arange(T) < 2)[:, None]
    assert_equal(run(cell, padded, mask=first_two)[0], run(cell, inputs, mask=first_two)[0])


@contract
def check_resets(cell: Cell) -> None:
    """Checks that sequences packed into one row with resets give the features of separate runs."""
    inputs = cell_inputs(cell)
    reset = (np.arange(T) == 4)[:, None] & np.array([[True, False, True]])
    packed = features(cell, inputs, reset=reset)
    whole, apart = features(cell, inputs), features(cell, inputs[4:])
    assert_close(packed[:, 1], whole[:, 1])
    assert_close(packed[4:, ::2], apart[:, ::2])
    require(np.all(np.any(packed[4:, ::2] != whole[4:, ::2], axis=-1)), "A reset has no effect.")


@contract
def check_causality(cell: Cell) -> None:
    """Checks that features depend on every input up to their step, and have exactly zero gradient in later ones."""
    gradient = np.asarray(_gradient_of_one_answer(cell, cell_inputs(cell)))
    require(np.all(gradient[4:] == 0), "Features depend on later inputs.")
    for step in range(4):
        require(np.any(gradient[step, 1] != 0), f"Features of step 3 do not depend on the input of step {step}.")


@contract
def check_isolation(cell: Cell) -> None:
    """Checks that a change of one example leaves the features of the others bit-equal."""
    inputs = cell_inputs(cell)
    gradient = np.asarray(_gradient_of_one_answer(cell, inputs))
    require(np.all(gradient[:, ::2] == 0), "Features of one example get a gradient from the inputs of another.")
    changed = features(cell, inputs.at[:, 1].set(-7.0))
    assert_equal(changed[:, ::2], features(cell, inputs)[:, ::2])


@contract
def check_extremes(cell: Cell) -> None:
    """Checks that values and gradients are finite for inputs of 0 and 10,000, and for saturated gates."""
    inputs = cell_inputs(cell)
    saturated = jax.tree.map(lambda leaf: 1e3 * leaf, cell)
    for subject, scale in [(cell, 0.0), (cell, 1e4), (saturated, 1.0)]:
        assert_finite(_everything_and_gradients(subject, scale * inputs))


@contract
def check_flax_rnn(cell: Cell) -> None:
    """Checks that the cell gives the same features inside `nnx.RNN`."""
    inputs = cell_inputs(cell)
    outputs = nnx.RNN(cell, time_major=True, rngs=nnx.Rngs(0))(inputs)
    assert_close(split_output(outputs)[0], features(cell, inputs))
