"""The compiled programs that the contracts of a cell share, and a reference for them: a loop over steps in NumPy.

Most of a contract's time is compilation. Contracts therefore use the same few programs with the same shapes, and JAX
compiles each of them once per cell and dtype. L is the scalar that they differentiate; see `run`.

Shape letters: `T` time steps, `B` examples, `D` input features.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax.cells import split_output
from mnm_jax.recurrence import unroll
from mnm_jax.testing._contract import first_dtype, is_float, normal

Array = jax.Array
Inputs = jax.Array | np.ndarray
Cell = Any  # an nnx.RNNCellBase with `in_features`, which its type does not declare
T, B = 6, 8


class Gradients(NamedTuple):
    """The floating-point leaves of cell, carry and inputs, or the gradients of L with respect to them."""

    cell: Any
    carry: Any
    inputs: Any


class Run(NamedTuple):
    """A run over a sequence: its last carry, its outputs, and the gradients of L."""

    carry: Any
    outputs: Any
    gradients: Gradients


def cell_dtype(cell: Cell) -> Any:
    """Returns the dtype of the cell's carry."""
    return first_dtype(jax.eval_shape(lambda: cell.initialize_carry((1, cell.in_features))))


def cell_inputs(cell: Cell, steps: int = T, batch_size: int = B) -> Array:
    """Returns random inputs `[T, B, D]` in the dtype of the cell's carry."""
    return normal((steps, batch_size, cell.in_features), cell_dtype(cell))


def begin(cell: Cell, batch_size: int = B) -> Any:
    """Returns the carry at the start of sequences."""
    return cell.initialize_carry((batch_size, cell.in_features))


def weights_of(inputs: Inputs) -> np.ndarray:
    """Returns the weight of every step of every example in L, `[T, B]`, all different."""
    return np.linspace(1, 2, inputs.shape[0] * inputs.shape[1]).reshape(inputs.shape[:2])


def floats(tree: Any) -> list[Array]:
    """Returns the floating-point leaves of a pytree."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]


def with_floats(tree: Any, new: list[Array]) -> Any:
    """Returns a pytree with other floating-point leaves."""
    leaves, structure = jax.tree.flatten(tree)
    rest = iter(new)
    return jax.tree.unflatten(structure, [next(rest) if is_float(leaf) else leaf for leaf in leaves])


def _differentiate(way: Callable, cell: Cell, carry: Any, inputs: Array, weights: Array, cotangents: Any) -> Run:
    """Returns `way(cell, carry, inputs)` and the gradients of L; see `run`."""

    def value(given: Gradients) -> tuple[Array, tuple[Any, Any]]:
        new, outputs = way(with_floats(cell, given.cell), with_floats(carry, given.carry), given.inputs)
        features, meta_loss = split_output(outputs)
        terms = [weights[..., None].astype(features.dtype) * jnp.sin(features)]
        if meta_loss is not None:
            terms.append(weights.astype(meta_loss.dtype) * meta_loss)
        if cotangents is not None:
            terms += [cotangent * leaf for cotangent, leaf in zip(cotangents, floats(new), strict=True)]
        dtype = jnp.float64 if features.dtype == jnp.float64 else jnp.float32
        return sum((jnp.sum(term.astype(dtype)) for term in terms), start=jnp.zeros((), dtype)), (new, outputs)

    gradients, (new, outputs) = jax.grad(value, has_aux=True)(Gradients(floats(cell), floats(carry), inputs))
    return Run(new, outputs, gradients)


@partial(jax.jit, static_argnames="form")
def run(cell: Cell, carry: Any, inputs: Array, weights: Array, cotangents: Any = None, **options: Any) -> Run:
    """Runs `unroll` and differentiates L = sum_t w_t (sum sin y_t + L^meta_t) + cotangents . carry_T."""
    way = lambda cell, carry, inputs: unroll(cell, carry, inputs, **options)  # noqa: E731
    return _differentiate(way, cell, carry, inputs, weights, cotangents)


@jax.jit
def _step(cell: Cell, carry: Any, inputs: Array, weights: Array, cotangents: list[Array]) -> Run:
    """Runs and differentiates one step, as `run` does a sequence."""
    return _differentiate(lambda cell, carry, now: cell(carry, now), cell, carry, inputs, weights, cotangents)


def take_step(cell: Cell, carry: Any, inputs: Array) -> tuple[Any, Any]:
    """Returns the carry and the outputs after one step with inputs `[B, D]`."""
    weights = np.ones(inputs.shape[0])
    return _step(cell, carry, inputs, weights, [np.zeros_like(leaf) for leaf in floats(carry)])[:2]


@jax.jit
def gradient_of_start(cell: Cell, cotangents: list[Array]) -> list[Array]:
    """Returns the gradient of cotangents . carry_0 with respect to the cell."""
    start = lambda leaves: floats(begin(with_floats(cell, leaves), cotangents[0].shape[0]))  # noqa: E731
    return jax.vjp(start, floats(cell))[1](cotangents)[0]


def flagged(
    cell: Cell,
    inputs: Inputs,
    carry: Any = None,
    *,
    cotangents: Any = None,
    weights: Any = None,
    mask: Any = None,
    reset: Any = None,
) -> Run:
    """Returns a run with a mask and resets, which have no effect by default, from a given carry or a new one."""
    every = np.ones(inputs.shape[:2], bool)
    mask, reset = every if mask is None else mask, ~every if reset is None else reset
    carry = begin(cell, inputs.shape[1]) if carry is None else carry
    cotangents = [np.zeros(leaf.shape, leaf.dtype) for leaf in floats(carry)] if cotangents is None else cotangents
    weights = weights_of(inputs) if weights is None else weights
    return run(cell, carry, inputs, weights, cotangents, mask=mask, reset=reset)  # "factored" if the cell has that form


def reference(cell: Cell, inputs: Any, *, mask: Any = None, reset: Any = None) -> Run:
    """Returns the run that `flagged` must equal, from a loop over steps, and the same loop backwards for the gradients.

    Masked steps are skipped, and the carry is replaced at resets, outside of all compiled programs.
    """
    inputs, weights = np.asarray(inputs), weights_of(inputs)
    every = np.ones(inputs.shape[:2], bool)
    mask, reset = every if mask is None else mask, ~every if reset is None else reset
    now = start = jax.device_get(begin(cell, inputs.shape[1]))
    none = [np.zeros_like(leaf) for leaf in floats(now)]
    given, outputs = [], []
    for t, flags in enumerate(mask):
        now = _where(reset[t], start, now)
        given.append((cell, now, np.where(flags[:, None], inputs[t], 0), weights[t] * flags))
        step = jax.device_get(_step(*given[-1], none))
        now = _where(flags, step.carry, now)
        outputs.append(_where(flags, step.outputs, jax.tree.map(np.zeros_like, step.outputs)))

    of_carry, of_start, of_inputs, of_cell = none, none, [], [np.zeros_like(leaf) for leaf in floats(cell)]
    for t, flags in reversed(list(enumerate(mask))):
        step = jax.device_get(_step(*given[t], _where(flags, of_carry, none))).gradients
        before = _add(step.carry, _where(flags, none, of_carry))
        of_start = _add(of_start, _where(reset[t], before, none))
        of_carry = _where(reset[t], none, before)
        of_inputs.append(np.where(flags[:, None], step.inputs, 0))
        of_cell = _add(of_cell, step.cell)
    of_cell = _add(of_cell, gradient_of_start(cell, of_start))
    gradients = Gradients(of_cell, of_carry, np.stack(of_inputs[::-1]))
    return Run(now, jax.tree.map(lambda *leaves: np.stack(leaves), *outputs), gradients)


def _where(flags: np.ndarray, on_true: Any, on_false: Any) -> Any:
    """Selects between two pytrees with leaves `[B, ...]` by flags `[B]`."""
    return jax.tree.map(lambda a, b: np.where(flags.reshape(-1, *[1] * (a.ndim - 1)), a, b), on_true, on_false)


def _add(a: list[np.ndarray], b: list[np.ndarray]) -> list[np.ndarray]:
    return [x + y for x, y in zip(a, b, strict=True)]


def largest(tree: Any) -> float:
    """Returns the largest magnitude in a pytree, the scale of rounding errors in sums."""
    return max(float(np.abs(leaf).max(initial=0)) for leaf in jax.tree.leaves(tree))
