"""Runs a cell over time with a hand-derived backward pass that stores no weights per step.

Let W_t be the weights after step t, q W the products that a step computes, y their results, and L_t the cotangent of
W_t (the suffix `_ct` means cotangent). Backwards in time:

    W_{t-1} = W_t + X_t^T D_t                               undoes the write
    X_ct = - D_t L_t^T,   D_ct = - X_t L_t                  the effect of step t's pairs on all later steps
    q_ct = y_ct W^T                                         the vjp of each product of step t, by `Replay`
    L_{t-1} = L_t + sum over products of q^T y_ct

W and L each have their own storage: dense matrices or factors, since both grow by outer products. The forward pass
stores the small carries and the results y, and factored storage also the pairs: `O(T H d)` numbers per example, where
plain autodiff stores `T d^2`.

Dense weights that are computed back differ from the weights of the forward pass by rounding; factors do not. The
derivation is in `docs/derivation.md`.
"""

import itertools
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax._masking import Steps
from mnm_jax._vary import is_zero, vary_alike
from mnm_jax.memory import Pair, Storage
from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._storage.factored import FactoredState
from mnm_jax.memory._storage.transposed import TransposedState
from mnm_jax.recurrence._fast.record import (
    CLOSED_OVER,
    TRANSFORMED,
    Pairs,
    Product,
    Products,
    Recorder,
    StepError,
    StepLog,
)
from mnm_jax.recurrence._fast.replay import Replay, growth
from mnm_jax.recurrence._fast.states import (
    Growth,
    Sizes,
    Start,
    State,
    Weights,
    open_cotangent,
    open_weights,
    start_cotangent,
)

Array = jax.Array


class Program(NamedTuple):
    """A cell's step, and the storage of its weights. Static.

    Attributes:
      step: `(theta, small, storage, one step's Steps) -> (small, storage, outputs)`, a pure function; the storage is a
        `Recorder` or a `Replay`.
      factored: whether the weights are kept as factors.
      dense_cotangent: whether the cotangent of factored weights is kept as matrices, which needs own weights at the
        start, and no resets; that of dense weights always is.
      kernels: `(theta) -> {index of a map: kernel [I, O]}` of all slow linear maps, some of which the step logs.
      add_kernels: `(theta, {index of a map: array to add to its kernel}) -> theta`.
    """

    step: Callable[..., tuple[Any, Any, Any]]
    factored: bool
    dense_cotangent: bool
    kernels: Callable[[Any], dict[int, Array]]
    add_kernels: Callable[[Any, dict[int, Array]], Any]

    def transposed_kernels(self, theta: Any) -> dict[int, Array]:
        """Returns the transposed kernels, computed once for all steps, since transposing is slow on a CPU."""
        return {index: kernel.T for index, kernel in self.kernels(theta).items()}


class _Shapes(NamedTuple):
    """The products and writes of a step; arrays are `ShapeDtypeStruct`s.

    Attributes:
      products: the products with the fast weights.
      plain: for each call of a slow map, whether it multiplies by the map's own kernel, so that it is logged.
      maps: the index of the slow map of each logged product with a slow map.
      writes: number of writes, also of those that the step drops.
      operands: the operands of the products with the fast weights.
      pairs: the pairs that the step writes.
    """

    products: list[Product]
    plain: list[bool]
    maps: list[int]
    writes: int
    operands: list[jax.ShapeDtypeStruct]
    pairs: Pairs

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the rows."""
        return self.pairs[0].inputs.dtype

    @property
    def written(self) -> Sizes:
        """The number of rows that a step writes to each layer, with I and O."""
        return tuple((p.inputs.shape[1], p.inputs.shape[2], p.delta.shape[2]) for p in self.pairs)

    @property
    def multiplied(self) -> Sizes:
        """The number of rows that a step multiplies with each layer, by which the weights' cotangent grows."""
        rows = [0] * len(self.pairs)
        for product, operand in zip(self.products, self.operands, strict=True):
            rows[product.layer] += operand.shape[1]
        return tuple((n, *sizes[1:]) for n, sizes in zip(rows, self.written, strict=True))


class _Saved(NamedTuple):
    """The state saved per step for the backward pass, from which the rest of the step is computed again.

    Attributes:
      small: the small carry before the step.
      results: the results of its products.
      resets: `first` and `was_reset` of factored storage, which change at a reset.
    """

    small: Any
    results: Products
    resets: tuple[Array | None, Array | None]


def run(
    program: Program, theta: Any, kernels: dict[int, Array], small: Any, start: Start, xs: Steps
) -> tuple[Any, Weights, Any]:
    """Returns the last small carry, the last weights `[B, I, O]` per layer, and the outputs `[T, ...]` of all steps.

    They are differentiable in theta, the first small carry, the first weights and the inputs. `kernels` is
    `program.transposed_kernels(theta)`, passed in so that several runs share it. Resets need factored weights, since
    dense ones cannot be computed back over a reset.
    """
    shapes = _shapes(program, theta, small, start, xs)
    # Compiled, since a `jax.shard_map` that is not compiled refuses the symbolic zeros of `_run`.
    small, last, outputs = jax.jit(partial(_run, program, shapes), inline=True)(theta, kernels, small, start, xs)
    if isinstance(last, MemoryState):
        return small, last.weights, outputs
    # Folded here, so that autodiff skips it if the loss does not use the last weights.
    shared = start.shared if start.own is None or xs.reset is not None else None
    return small, last._replace(shared=shared, own=start.own).fold(), outputs


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(
    program: Program, shapes: _Shapes, theta: Any, kernels: dict[int, Array], small: Any, start: Start, xs: Steps
) -> tuple[Any, State, Any]:
    return _forward(program, shapes, theta, small, start, xs)[0]


def _forward(
    program: Program, shapes: _Shapes, theta: Any, small: Any, start: Start, xs: Steps
) -> tuple[tuple[Any, State, Any], tuple[_Saved, State]]:
    def body(carry: tuple[Any, State], x: Steps) -> tuple[tuple[Any, State], tuple[Any, _Saved]]:
        small, storage = carry
        resets: tuple[Array | None, Array | None] = (None, None)
        if isinstance(storage, FactoredState):
            storage = storage if x.reset is None else storage.reset(x.reset)
            resets = (storage.first, storage.was_reset)
        log = StepLog(shapes.plain)
        join_writes = program.factored and shapes.writes > 1
        recorder = Recorder(base=storage, log=log, mask=x.mask, discarded=x.discarded, join_writes=join_writes)
        new, recorder, outputs = program.step(theta, small, recorder, x)
        return (new, recorder.close()), (outputs, _Saved(small, log.results, resets))

    storage = open_weights(start, program.factored, shapes.written, shapes.dtype, xs)
    (small, storage), (outputs, saved) = jax.lax.scan(body, (small, storage), xs)
    last = storage._replace(shared=None, own=None) if isinstance(storage, FactoredState) else storage
    return (small, last, outputs), (saved, storage)


def _run_forward(program: Program, shapes: _Shapes, *arguments: Any) -> tuple[tuple[Any, State, Any], Any]:
    theta, kernels, small, start, xs = jax.tree.map(lambda leaf: leaf.value, arguments)
    results, saved = _forward(program, shapes, theta, small, start, xs)
    return results, (theta, kernels, start, xs, *saved)


def _run_backward(
    program: Program, shapes: _Shapes, residuals: Any, cotangents: tuple[Any, Any, Any]
) -> tuple[Any, ...]:
    theta, kernels, start, xs, saved, storage = residuals
    small_ct, last_ct, outputs_ct = cotangents
    # The step is not differentiated through outputs that the loss does not use, whose cotangents are known to be zero.
    tree: Any
    outputs_ct, tree = jax.tree.flatten(outputs_ct, is_leaf=is_zero)
    used = [not is_zero(leaf) for leaf in outputs_ct]
    outputs_ct = list(itertools.compress(outputs_ct, used))

    def body(carry: tuple[Any, ...], at_step: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        theta_ct, small_ct, weights, weights_ct, pending = carry
        x, saved, outputs_ct, last_ct = at_step
        # The growth of the following step is added here, where nothing reads the old cotangent any more, so that the
        # compiler updates it in place. If each step added its own growth, value and gradient would take 1.2 to 1.36
        # times as long for one head and 1.11 to 1.16 times for four (`docs/derivation.md`).
        weights_ct = pending.add_to(weights_ct)
        probes = jax.tree.map(jnp.zeros_like, saved.results)

        def replayed(
            weights: Storage | None, theta: Any, small: Any, inputs: Array, probes: Products
        ) -> tuple[tuple[Any, Any, Pairs], Products]:
            log = StepLog(shapes.plain)
            replay = Replay(
                base=weights,
                log=log,
                mask=x.mask,
                discarded=x.discarded,
                results=saved.results,
                probes=probes,
                kernels=kernels,
            )
            small, last, outputs = program.step(theta, small, replay, x._replace(inputs=inputs))
            outputs = list(itertools.compress(tree.flatten_up_to(outputs), used))
            return (small, outputs, last.written.pairs), log.operands

        if program.factored:
            weights, pairs = weights.pop(*saved.resets)
        else:
            # The pairs follow from the results without any weights; the compiler merges this with the replay below.
            (_, _, pairs), _ = replayed(None, theta, saved.small, x.inputs, probes)
            weights = weights.subtract(tuple(Pair(p.inputs, -p.delta) for p in pairs))
        pairs_ct = tuple(
            Pair(-weights_ct.product_transposed(layer, p.delta), -weights_ct.product(layer, p.inputs))
            for layer, p in enumerate(pairs)
        )
        if last_ct is not None:
            pairs_ct = jax.tree.map(jnp.add, pairs_ct, last_ct)

        operands: Products
        _, vjp, operands = jax.vjp(partial(replayed, weights), theta, saved.small, x.inputs, probes, has_aux=True)
        theta_ct_now, small_ct, inputs_ct, results_ct = vjp((small_ct, outputs_ct, pairs_ct))
        rows = growth(shapes.products, operands.memory, results_ct.memory, len(pairs))
        theta_ct = [total + ct for total, ct in zip(theta_ct, _differentiable(theta_ct_now, theta), strict=True)]
        carry = (theta_ct, small_ct, weights, weights_ct, Growth(rows, x.reset))
        return carry, (inputs_ct, operands.maps, results_ct.maps)

    pairs_ct: Pairs | None = None
    dense_ct: Weights | None = None
    if isinstance(last_ct, MemoryState):
        dense_ct = _instantiate(last_ct.weights)
    else:
        if not all(map(is_zero, jax.tree.leaves(last_ct.pairs, is_leaf=is_zero))):
            pairs_ct = jax.tree.map(lambda buffer: jnp.moveaxis(buffer, 1, 0), _instantiate(last_ct.pairs))
        dense_ct = tuple(map(jnp.zeros_like, start.own)) if program.dense_cotangent else None
    cotangent = open_cotangent(dense_ct, shapes.multiplied, shapes.dtype, xs)
    zeros = [jnp.zeros_like(leaf) for leaf in _differentiable(theta, theta)]
    theta_ct, small_ct, _ = vary_alike((zeros, _instantiate(small_ct), xs))
    carry = (theta_ct, small_ct, TransposedState.of(storage), *cotangent)
    carry, (inputs_ct, operands, results_ct) = jax.lax.scan(
        body, carry, (xs, saved, outputs_ct, pairs_ct), reverse=True
    )
    theta_ct, small_ct, _, weights_ct, pending = carry
    theta_ct = _restore(theta_ct, theta)
    theta_ct = program.add_kernels(theta_ct, _kernel_cotangents(shapes, program.kernels(theta), operands, results_ct))
    # Sums of pairs are at least in float32, the weights may be in bfloat16.
    start_ct = start_cotangent(start, pending.add_to(weights_ct))
    start_ct = jax.tree.map(lambda leaf, ct: ct.astype(leaf.dtype), start, start_ct)
    return theta_ct, None, small_ct, start_ct, Steps(inputs_ct)


_run.defvjp(_run_forward, _run_backward, symbolic_zeros=True)


def _differentiable(tree: Any, like: Any) -> list[Array]:
    """Returns the leaves of a tree at the places of floating-point arrays in `like`, a tree of the same structure."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)
    return [leaf for leaf, other in pairs if jnp.issubdtype(other.dtype, jnp.inexact)]


def _restore(leaves: list[Array], like: Any) -> Any:
    """Returns the tree of which `_differentiable` returned the leaves, with the cotangents of integers and keys."""
    found = iter(leaves)

    def cotangent(leaf: Any) -> Any:
        return next(found) if jnp.issubdtype(leaf.dtype, jnp.inexact) else np.zeros(leaf.shape, jax.dtypes.float0)

    return jax.tree.map(cotangent, like)


def _instantiate(tree: Any) -> Any:
    """Returns the tree with arrays in place of symbolic zeros."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if is_zero(x) else x, tree, is_leaf=is_zero)


def _kernel_cotangents(
    shapes: _Shapes, kernels: dict[int, Array], operands: list[Array], results_ct: list[Array]
) -> dict[int, Array]:
    """Returns the cotangents of the slow maps' kernels: one large product per map, over all steps at once.

    With one product per step instead, value and gradient take 1.23 to 1.33 times as long for one head and 1.05 to 1.19
    times for four (`docs/derivation.md`).
    """
    cotangents: dict[int, Array] = {}
    for index, x, ct in zip(shapes.maps, operands, results_ct, strict=True):
        kernel_ct = jnp.einsum("...i,...o->io", x, ct, preferred_element_type=kernels[index].dtype)
        cotangents[index] = cotangents.get(index, 0) + kernel_ct
    return cotangents


def _shapes(program: Program, theta: Any, small: Any, start: Start, xs: Steps) -> _Shapes:
    """Returns the products and writes of one step, from an abstract trace without computation."""
    logs: list[tuple[Any, ...]] = []  # without traced values, for jax_check_tracer_leaks
    batch_size = xs.inputs.shape[1]

    def trace(theta: Any, small: Any, start: Start, x: Steps) -> tuple[Any, ...]:
        log = StepLog()
        # Made here, since JAX 0.10 fails for shapes with the axes of a `jax.shard_map` over a part of a mesh.
        recorder = Recorder(base=start.dense(batch_size), log=log, mask=x.mask, discarded=x.discarded)
        written = program.step(theta, small, recorder, x)[1].written
        logs.append((log.products, log.maps, log.writes))
        # In place of a kernel that cannot be logged: the inputs, which are no kernel.
        kernels = [x.inputs if kernel is None else kernel for kernel in log.kernels]
        return program.kernels(theta), kernels, log.operands.memory, written.pairs

    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    try:
        jaxpr, (own_kernels, _, operands, pairs) = jax.make_jaxpr(trace, return_shape=True)(theta, small, start, x)
    except TypeError as error:  # a log is no array that a primitive or a loop could take
        if not re.search(rf"\b{StepLog.__name__}\b", str(error)):
            raise
        raise StepError(TRANSFORMED) from error
    if any(isinstance(value, jax.core.Tracer) and jnp.issubdtype(value.dtype, jnp.inexact) for value in jaxpr.consts):
        raise StepError(CLOSED_OVER)
    ((products, maps, writes),) = logs
    if not pairs:
        raise StepError("the memory that a step of the cell returns has no write: use unroll(..., form='plain').")
    known = dict(zip(sorted(own_kernels), jaxpr.jaxpr.outvars, strict=False))  # a pytree's keys are sorted
    casts = {e.outvars[0]: e.invars[0] for e in jaxpr.jaxpr.eqns if e.primitive.name == "convert_element_type"}
    called = zip(maps, jaxpr.jaxpr.outvars[len(known) :], strict=False)
    plain = [index in known and known[index] is casts.get(kernel, kernel) for index, kernel in called]
    return _Shapes(
        products=products,
        plain=plain,
        maps=list(itertools.compress(maps, plain)),
        writes=writes,
        operands=operands,
        pairs=pairs,
    )
