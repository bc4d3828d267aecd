"""A run over time whose backward pass is derived by hand: no weights of a step are kept for it.

Let W_t be the weights after step t, y = q W the products that a step asks for, and L_t = d loss / d W_t. Backwards,

    W_{t-1} = W_t + X_t^T D_t                                the write taken back
    dX_t = - D_t L_t^T,   dD_t = - X_t L_t                   what the pairs of step t mean for all that came later
    dq = dy W^T                                              through each product of step t, by `tape.Replay`
    L_{t-1} = L_t + sum over products of q^T dy

W and L go through time side by side, each in a storage of its own: dense matrices, or factors, since L grows by outer
products just as W does. Kept from the forward pass are small carries, the answers y and the pairs: O(T H d) numbers an
example where plain autodiff keeps T d^2.

Dense weights that are taken back differ from the ones of the forward pass by rounding; factors do not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._storage.factored import FactoredState, empty_pairs
from mnm_jax.memory._storage.transposed import Transposed
from mnm_jax.memory._types import Pair, Storage
from mnm_jax.recurrence._fast.tape import Answers, Log, Question, Recorder, Replay, growth

Array = jax.Array
Weights = tuple[Array, ...]


class Start(NamedTuple):
    """The weights that a run starts from. shared: `[I, O]` a layer, where a reset leads back to, and the start itself
    if there are no own ones. own: `[B, I, O]` a layer. Either may be None."""

    shared: Weights | None
    own: Weights | None


class Inputs(NamedTuple):
    """inputs: `[T, B, D]`. keep, reset, fork: `[T, B]` bool or None."""

    inputs: Array
    keep: Array | None
    reset: Array | None
    fork: Array | None


class Program(NamedTuple):
    """step: `(theta, small, storage, Inputs of one step) -> (small, storage, outputs)`, pure.
    factored: keep the weights as factors. dense_cotangent: but not their cotangent; needs own weights and no resets.
    kernels: `(theta) -> [I, O] of every slow linear map` whose products the step logs, that of the rule last.
    add_kernels: `(theta, {map: what to add to its kernel}) -> theta`."""

    step: Callable
    factored: bool
    dense_cotangent: bool
    kernels: Callable
    add_kernels: Callable

    def turn(self, theta: Any) -> list[Array]:
        """The kernels transposed, once for all steps, since a CPU is slow at it."""
        return [jax.lax.stop_gradient(kernel.T) for kernel in self.kernels(theta)]


class _Shapes(NamedTuple):
    """What a step asks for and writes, and how often; arrays are `ShapeDtypeStruct`s."""

    questions: list[Question]
    linear: list[int]
    writes: int
    asked: list[Any]
    pairs: tuple[Pair, ...]


class _Saved(NamedTuple):
    """Of each step, for the backward pass. small: the carry before it. answers: what its products gave; all else that
    happened in it follows from them. since: (first, fresh) of the factored storage, which change at a reset."""

    small: Any
    answers: Answers
    since: tuple[Array | None, Array | None]


class _Pending(NamedTuple):
    """What the cotangent of the weights is still to take up. rows: as `growth` gives them; reset: `[B]` or None."""

    rows: tuple[Pair, ...]
    reset: Array | None

    def add_to(self, of_weights: Storage) -> Storage:
        of_weights = of_weights.subtract(self.rows)
        return of_weights if self.reset is None else of_weights.reset(self.reset)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def run(
    program: Program, theta: Any, turned: list[Array], small: Any, start: Start, xs: Inputs
) -> tuple[Any, Weights, Any]:
    """(small carry, own weights, outputs `[T, ...]`) after all steps. Differentiable in theta, small, start, inputs.

    turned: `program.turn(theta)`, which the backward pass multiplies by; given so that several runs share it.

    Raises:
      ValueError: dense weights and a reset, over which they cannot be taken back.
    """
    del turned
    return _forward(program, theta, small, start, xs)[0]


def _forward(program: Program, theta: Any, small: Any, start: Start, xs: Inputs):
    if xs.reset is not None and not program.factored:
        raise ValueError("dense weights cannot be taken back over a reset: use factors.")
    shapes = _shapes(program.step, theta, small, start, xs)

    def body(carry, x: Inputs):
        small, storage = carry
        if x.reset is not None:
            storage = storage.reset(x.reset)
        log = Log()
        late = program.factored and shapes.writes > 1
        new, recorder, outputs = program.step(theta, small, Recorder(storage, log, x.keep, x.fork, late), x)
        since = (storage.first, storage.fresh) if program.factored else (None, None)
        return (new, recorder.close()), (outputs, _Saved(small, Answers(log.memory.answers, log.maps.answers), since))

    storage = _open(program, shapes, start, xs)
    (small, storage), (outputs, saved) = jax.lax.scan(body, (small, storage), xs)
    own = storage.fold() if program.factored else storage.weights
    return (small, own, outputs), (saved, storage, shapes)


def _run_forward(program: Program, theta: Any, turned: list[Array], small: Any, start: Start, xs: Inputs):
    given = jax.tree.map(lambda leaf: leaf.value, (theta, turned, small, start, xs))
    theta, turned, small, start, xs = given
    result, (saved, storage, _) = _forward(program, theta, small, start, xs)
    return result, (theta, turned, start, xs, saved, storage)


def _run_backward(program: Program, residuals, cotangents):
    theta, turned, start, xs, saved, storage = residuals
    of_small, of_own, of_outputs = cotangents
    of_small = jax.tree.map(_instantiate, of_small, is_leaf=_is_zero)
    first_small = jax.tree.map(lambda x: x[0], saved.small)
    shapes = _shapes(program.step, theta, first_small, start, xs)
    # Outputs that the loss does not see cost nothing: their cotangents are zeros known as such.
    of_outputs, tree = jax.tree.flatten(of_outputs, is_leaf=_is_zero)
    seen = [not _is_zero(leaf) for leaf in of_outputs]
    of_outputs = [leaf for leaf in of_outputs if not _is_zero(leaf)]

    def body(carry, at_step):
        of_theta, of_small, weights, of_weights, pending = carry
        x, saved, of_outputs = at_step
        # Growth waits for the next turn, where nobody reads the old cotangent any more: so it can grow in place.
        of_weights = pending.add_to(of_weights)
        probes = jax.tree.map(jnp.zeros_like, saved.answers)

        def replayed(weights, theta, small, inputs, probes):
            log = Log()
            replay = Replay(weights, log, x.keep, x.fork, saved.answers, probes, turned)
            small, _, outputs = program.step(theta, small, replay, x._replace(inputs=inputs))
            outputs = [leaf for leaf, wanted in zip(tree.flatten_up_to(outputs), seen, strict=True) if wanted]
            return (small, outputs, log.pairs), Answers(log.memory.asked, log.maps.asked)

        if program.factored:
            weights, pairs = weights.pop()
            weights = weights.since(*saved.since)
        else:
            # What was written follows from the answers without any weights; the compiler joins this with the replay.
            (_, _, pairs), _ = replayed(weights, theta, saved.small, x.inputs, probes)
            weights = weights.subtract(tuple(Pair(p.inputs, -p.delta) for p in pairs))
        of_pairs = tuple(
            Pair(-of_weights.product_transposed(layer, p.delta), -of_weights.product(layer, p.inputs))
            for layer, p in enumerate(pairs)
        )

        _, pull, asked = jax.vjp(partial(replayed, weights), theta, saved.small, x.inputs, probes, has_aux=True)
        of_theta_now, of_small, of_inputs, of_answers = pull((of_small, of_outputs, of_pairs))
        rows = growth(shapes.questions, asked.memory, of_answers.memory, len(pairs))
        of_theta = jax.tree.map(jnp.add, of_theta, of_theta_now)
        carry = (of_theta, of_small, weights, of_weights, _Pending(rows, x.reset))
        return carry, (of_inputs, asked.maps, of_answers.maps)

    storage = Transposed.of(storage)  # nearly all products of the backward pass are with W^T
    of_theta = jax.tree.map(jnp.zeros_like, theta)
    carry = (of_theta, of_small, storage, *_open_cotangent(program, shapes, of_own, xs))
    carry, (of_inputs, asked, of_answers) = jax.lax.scan(body, carry, (xs, saved, of_outputs), reverse=True)
    of_theta, of_small, _, of_weights, pending = carry
    of_weights = pending.add_to(of_weights)
    # The gradients of slow linear maps: one large product each, over all steps at once.
    slow = program.kernels(theta)
    kernels: dict[int, Array] = {}
    for index, x, c in zip(shapes.linear, asked, of_answers, strict=True):
        of_kernel = jnp.einsum("...i,...o->io", x, c, preferred_element_type=slow[index].dtype)
        kernels[index] = kernels.get(index, 0) + of_kernel
    of_theta = program.add_kernels(of_theta, kernels)
    return of_theta, None, of_small, _of_start(start, of_weights, of_own), Inputs(of_inputs, None, None, None)


run.defvjp(_run_forward, _run_backward, symbolic_zeros=True)


def _shapes(step: Callable, theta: Any, small: Any, start: Start, xs: Inputs) -> _Shapes:
    """Traces one step for what it asks for, without computing anything."""
    questions, linear, writes = [], [], []
    own = start.own
    if own is None:
        own = tuple(jax.ShapeDtypeStruct((xs.inputs.shape[1], *w.shape), w.dtype) for w in start.shared)

    def trace(theta, small, own, x):
        log = Log()
        step(theta, small, Recorder(MemoryState(own), log, x.keep, x.fork), x)
        questions.extend(log.questions)
        linear.extend(log.linear)
        writes.append(log.writes)
        return log.memory.asked, log.pairs

    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    asked, pairs = jax.eval_shape(trace, theta, small, own, x)
    return _Shapes(questions, linear, writes[0], asked, pairs)


def _open(program: Program, shapes: _Shapes, start: Start, xs: Inputs) -> Storage:
    steps, batch_size = xs.inputs.shape[:2]
    if not program.factored:
        return MemoryState(start.own if start.own is not None else _broadcast(start.shared, batch_size))
    sizes = tuple((p.inputs.shape[1], p.inputs.shape[2], p.delta.shape[2]) for p in shapes.pairs)
    return FactoredState(
        start.shared if start.own is None or xs.reset is not None else None,
        start.own,
        empty_pairs(sizes, batch_size, steps, shapes.pairs[0].inputs.dtype),
        jnp.zeros((), jnp.int32),
        None if xs.reset is None else jnp.zeros(batch_size, jnp.int32),
        None if xs.reset is None or start.own is None else jnp.zeros(batch_size, bool),
    )


def _open_cotangent(program: Program, shapes: _Shapes, of_own: Weights, xs: Inputs) -> tuple[Storage, _Pending]:
    """L_T, and nothing to be added to it yet."""
    steps, batch_size = xs.inputs.shape[:2]
    rows = [0] * len(shapes.pairs)
    for question, asked in zip(shapes.questions, shapes.asked, strict=True):
        rows[question.layer] += asked.shape[1]
    sizes = tuple((n, p.inputs.shape[2], p.delta.shape[2]) for n, p in zip(rows, shapes.pairs, strict=True))
    dtype = shapes.pairs[0].inputs.dtype
    nothing = jax.tree.map(lambda buffer: buffer[:, 0], empty_pairs(sizes, batch_size, 1, dtype))
    pending = _Pending(nothing, None if xs.reset is None else jnp.zeros(batch_size, bool))
    if program.dense_cotangent:
        return MemoryState(tuple(map(_instantiate, of_own))), pending
    own = None if all(map(_is_zero, of_own)) else tuple(map(_instantiate, of_own))
    storage = FactoredState(
        None,
        own,
        empty_pairs(sizes, batch_size, steps + 1, dtype),
        jnp.zeros((), jnp.int32),
        None if xs.reset is None else jnp.zeros(batch_size, jnp.int32),
        None if xs.reset is None or own is None else jnp.zeros(batch_size, bool),
    )
    return storage, pending


def _of_start(start: Start, of_weights: Storage, of_own: Weights) -> Start:
    """L_0, summed over the batch where the batch shares W_0."""
    if isinstance(of_weights, MemoryState):
        if start.own is not None:
            return Start(None if start.shared is None else tuple(map(jnp.zeros_like, start.shared)), of_weights.weights)
        return Start(tuple(jnp.sum(w, 0) for w in of_weights.weights), None)
    if start.own is None:
        return Start(of_weights.total(), None)
    own = of_weights.fold()
    if start.shared is None:
        return Start(None, own)
    return Start(tuple(jnp.subtract(a, jnp.sum(b, 0)) for a, b in zip(of_weights.total(), own, strict=True)), own)


def _broadcast(weights: Weights, batch_size: int) -> Weights:
    return tuple(jnp.broadcast_to(w, (batch_size, *w.shape)) for w in weights)


def _is_zero(leaf: Any) -> bool:
    return isinstance(leaf, SymbolicZero)


def _instantiate(leaf: Any) -> Array:
    return jnp.zeros(leaf.shape, leaf.dtype) if _is_zero(leaf) else leaf
