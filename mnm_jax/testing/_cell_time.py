"""Contracts of a cell over time: its carry, mask, reset, causality, and extreme numbers.

Shape letters: `T` time steps, `B` examples, `D` input features, `F` output features.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax.cells import split_output
from mnm_jax.cells._mnm import RecentWrites
from mnm_jax.memory import GatedState, MemoryState
from mnm_jax.recurrence import unroll
from mnm_jax.testing._cell_runs import (
    Cell,
    Gradients,
    Run,
    T,
    begin,
    cell_dtype,
    cell_inputs,
    flagged,
    largest,
    reference,
    weights_of,
)
from mnm_jax.testing._contract import assert_close, assert_equal, assert_finite, contract, is_float, kinds, require

Array = jax.Array


@contract
def check_cell_carry(cell: Cell) -> None:
    """Checks that shapes and dtypes of the carry are constant under a step, `lax.cond` and `vmap`."""
    inputs = cell_inputs(cell)[0]
    carry, size = cell.initialize_carry(inputs.shape), len(inputs)
    for leaf in jax.tree.leaves(carry):
        require(leaf.shape[:1] == (size,), f"Leaves of the carry must be [B, ...] with B = {size}, got {leaf.shape}.")
    new, _ = jax.eval_shape(cell, carry, inputs)
    require(kinds(new) == kinds(carry), f"The carry changes from {kinds(carry)} to {kinds(new)}.")
    either = jax.eval_shape(lambda go: jax.lax.cond(go, lambda: cell(carry, inputs)[0], lambda: carry), True)
    require(kinds(either) == kinds(carry), f"Under lax.cond the carry changes from {kinds(carry)} to {kinds(either)}.")
    many, _ = jax.eval_shape(jax.vmap(cell, (None, 0)), carry, np.stack([inputs, inputs]))
    expected = jax.tree.map(lambda leaf: ((2, *leaf.shape), leaf.dtype), carry)
    require(kinds(many) == expected, f"Under vmap the carry changes from {expected} to {kinds(many)}.")


@contract
def check_cell_dtypes(make_cell: Callable[..., Cell]) -> None:
    """Checks that parameters and gradients have `param_dtype`, and carry and outputs `dtype`, to which inputs are cast.

    The dtypes are float32, bfloat16 and float64, and bfloat16 computation with float32 parameters. The weights of a
    neural memory in the carry keep `param_dtype`; the dtype of a state of another type with `of_memory` is free.

    Args:
      make_cell: `make_cell(dtype=..., param_dtype=...)` returns the cell.
    """
    single, half, double = jnp.float32, jnp.bfloat16, jnp.float64
    with jax.enable_x64(True):
        for param_dtype, dtype in [(single, single), (half, half), (double, double), (single, half)]:
            cell = nnx.eval_shape(partial(make_cell, dtype=dtype, param_dtype=param_dtype))
            _check_dtype("parameters", nnx.state(cell, nnx.Param), param_dtype)
            carry = jax.eval_shape(begin, cell)
            nodes = jax.tree.leaves(carry, is_leaf=lambda node: _is_weights(node) or _is_free(node))
            _check_dtype("a memory's weights", [node.weights for node in nodes if _is_weights(node)], param_dtype)
            _check_dtype("the carry", [node for node in nodes if not _is_weights(node) and not _is_free(node)], dtype)
            for given in (double, jnp.int32):
                inputs = jax.ShapeDtypeStruct((8, cell.in_features), given)
                new, outputs = jax.eval_shape(lambda cell, carry, now: cell(carry, now), cell, carry, inputs)
                require(kinds(new) == kinds(carry), f"Inputs in {given} change the carry to {kinds(new)}.")
                _check_dtype("features", split_output(outputs)[0], dtype)
            if param_dtype == half:
                inputs = jax.ShapeDtypeStruct((T, 8, cell.in_features), dtype)
                _check_dtype("gradients", jax.eval_shape(flagged, cell, inputs).gradients, half)


def _is_weights(node: Any) -> bool:
    return isinstance(node, MemoryState | GatedState)


def _is_free(node: Any) -> bool:
    """Returns whether a node of a carry is the state of a user's own memory."""
    return getattr(node, "of_memory", False) and not isinstance(node, RecentWrites)


def _check_dtype(name: str, tree: Any, dtype: DTypeLike) -> None:
    found = {jnp.dtype(leaf.dtype).name for leaf in jax.tree.leaves(tree) if is_float(leaf)}
    require(found <= {jnp.dtype(dtype).name}, f"The dtype of {name} must be {jnp.dtype(dtype)}, got {sorted(found)}.")


@contract
def check_cell_unroll(cell: Cell) -> None:
    """Checks that two runs joined by the carry equal a loop over all steps, in values and gradients."""
    early = np.asarray(cell_inputs(cell))
    late = early[::-1]
    both = np.concatenate([early, late])
    w, v = np.split(weights_of(both), 2)
    second = flagged(cell, late, flagged(cell, early).carry, weights=v)
    first = flagged(cell, early, weights=w, cotangents=second.gradients.carry)
    join = lambda *leaves: np.concatenate(leaves)  # noqa: E731
    gradients = Gradients(
        cell=jax.tree.map(np.add, *map(jax.device_get, (first.gradients.cell, second.gradients.cell))),
        carry=first.gradients.carry,
        inputs=join(first.gradients.inputs, second.gradients.inputs),
    )
    found = Run(second.carry, jax.tree.map(join, first.outputs, second.outputs), gradients)
    _assert_same(found, reference(cell, both))


def _assert_same(found: Run, expected: Run) -> None:
    assert_close(found, expected, scale=largest(expected.gradients))


@contract
def check_cell_masking(cell: Cell) -> None:
    """Checks that padding, NaN included, changes no carry, output or later step and gets exactly zero gradient."""
    inputs = np.asarray(cell_inputs(cell))
    mask = np.ones(inputs.shape[:2], bool)
    mask[2], mask[5, 1], mask[0, 2], mask[:, 3] = False, False, False, False
    undefined = np.full_like(inputs, np.nan)
    found = jax.device_get(flagged(cell, np.where(mask[..., None], inputs, undefined), mask=mask))
    assert_finite(found.gradients)
    gradient = found.gradients.inputs
    require(np.all(gradient[~mask] == 0), "Padding gets a gradient that is not zero.")
    require(np.all(np.any(gradient[1, :3] != 0, -1)), "Inputs before padding get no gradient.")
    _assert_same(found, reference(cell, inputs, mask=mask))
    only = lambda tree: jax.tree.map(lambda leaf: leaf[3], tree)  # noqa: E731
    assert_equal(only(found.carry), only(jax.device_get(begin(cell))))


@contract
def check_cell_resets(cell: Cell) -> None:
    """Checks that sequences packed into one row with resets give the results of separate runs."""
    inputs = cell_inputs(cell)
    reset = np.zeros(inputs.shape[:2], bool)
    reset[4, 0] = reset[0, 1] = reset[1, 2] = reset[4, 2] = True
    found = flagged(cell, inputs, reset=reset)
    _assert_same(found, reference(cell, inputs, reset=reset))
    both = (found.outputs, flagged(cell, inputs).outputs)
    packed, whole = (np.asarray(split_output(outputs)[0]) for outputs in both)
    require(np.all(np.any(packed[4:, 0] != whole[4:, 0], axis=-1)), "A reset has no effect.")


def _gradient_of_one_answer(cell: Cell) -> np.ndarray:
    """Returns the derivative of the features of example 1 at step 3 with respect to all inputs `[T, B, D]`."""
    inputs = cell_inputs(cell)
    weights = np.zeros(inputs.shape[:2])
    weights[3, 1] = 1
    return np.asarray(flagged(cell, inputs, weights=weights).gradients.inputs)


@contract
def check_cell_causality(cell: Cell) -> None:
    """Checks that features depend on every input up to their step, and have exactly zero gradient in later ones."""
    gradient = _gradient_of_one_answer(cell)
    require(np.all(gradient[4:] == 0), "Features depend on later inputs.")
    for step in range(4):
        require(np.any(gradient[step, 1] != 0), f"Features of step 3 do not depend on the input of step {step}.")


@contract
def check_cell_isolation(cell: Cell) -> None:
    """Checks that a change of one example leaves the features of the others bit-equal."""
    inputs = np.asarray(cell_inputs(cell))
    gradient = _gradient_of_one_answer(cell)
    require(np.all(np.delete(gradient, 1, axis=1) == 0), "Features of one example depend on the inputs of another.")
    whole = split_output(flagged(cell, inputs).outputs)[0]
    other = inputs.copy()
    other[:, 1] = -7.0
    changed = split_output(flagged(cell, other).outputs)[0]
    assert_equal(np.delete(changed, 1, axis=1), np.delete(whole, 1, axis=1))


@contract
def check_cell_extremes(cell: Cell) -> None:
    """Checks that values and gradients are finite for inputs of 0 and 10,000, equal inputs, and saturated gates."""
    inputs = np.asarray(cell_inputs(cell))
    equal = np.broadcast_to(inputs[:1, :1], inputs.shape)
    times = lambda factor, array: np.asarray(factor, array.dtype) * np.asarray(array)  # noqa: E731
    saturated = jax.tree.map(lambda leaf: jnp.asarray(times(1e3, leaf)) if is_float(leaf) else leaf, cell)
    for subject, given in [(cell, times(0, inputs)), (cell, times(1e4, inputs)), (cell, equal), (saturated, inputs)]:
        assert_finite(flagged(subject, given))


@partial(jax.jit, static_argnames="steps")
def _stream(cell: Cell, carry: Any, key: Array, steps: int) -> tuple[Any, Array]:
    """Returns the carry after steps with random inputs, and whether all features were finite."""

    def step(state: Any, key: Array) -> Any:
        carry, finite = state
        shape = (jax.tree.leaves(carry)[0].shape[0], cell.in_features)
        carry, outputs = cell(carry, jax.random.normal(key, shape, cell_dtype(cell)))
        return (carry, finite & jnp.all(jnp.isfinite(split_output(outputs)[0]))), None

    return jax.lax.scan(step, (carry, jnp.array(True)), jax.random.split(key, steps))[0]


@contract
def check_cell_stream(cell: Cell, steps: int = 1000) -> None:
    """Checks that carry and features stay finite over a stream of random inputs.

    The stream runs in several calls, each of which continues from the last carry of the previous one.

    Args:
      cell: the cell.
      steps: number of steps; rounded up to a multiple of 500, the steps of one call.
    """
    carry = begin(cell, 2)
    for call in range(-(-steps // 500)):
        carry, finite = _stream(cell, carry, jax.random.key(call), 500)
        require(finite, f"Features are not finite within {500 * (call + 1)} steps.")
    assert_finite(carry)


@contract
def check_cell_flax_rnn(cell: Cell) -> None:
    """Checks that the cell gives the same features inside `nnx.RNN`."""
    inputs = cell_inputs(cell)
    outputs = nnx.RNN(cell, time_major=True, rngs=nnx.Rngs(0))(inputs)
    assert_close(split_output(outputs)[0], split_output(flagged(cell, inputs).outputs)[0])


@contract
def check_cell_empty(cell: Cell) -> None:
    """Checks that no steps, and no examples, give empty outputs and gradients, and keep the shapes of the carry."""

    def value(inputs: Array, carry: Any) -> tuple[Array, Any]:
        new, outputs = unroll(cell, carry, inputs)
        return jnp.sum(split_output(outputs)[0]), (new, outputs)

    for steps, batch_size in [(0, 2), (3, 0)]:
        inputs = np.zeros((steps, batch_size, cell.in_features), cell_dtype(cell))
        carry = begin(cell, batch_size)
        gradient, (new, outputs) = jax.eval_shape(jax.grad(value, has_aux=True), inputs, carry)
        require(kinds(new) == kinds(carry), f"The carry changes from {kinds(carry)} to {kinds(new)}.")
        found = {leaf.shape[:2] for leaf in jax.tree.leaves((gradient, outputs))}
        require(found == {(steps, batch_size)}, f"Outputs must be [{steps}, {batch_size}, ...], got {found}.")
