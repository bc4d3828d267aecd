"""The recurrence of writes and reads in a kernel: the fast weights stay on the chip over all steps.

One program per example runs through the steps. For the local, the delta and the gradient rule it computes the same as
`PairMemory.write_read`, and stores the results of all products, `O(T (H + R) d)` numbers per example for layers of
width d. A second kernel runs from the last step to the first, with the weights W and their cotangent L on the chip. For
each step it computes

    L <- L + q^T y_ct,     q_ct = y_ct W^T       for each product y = q W after the write
    X_ct = - D L^T,        D_ct = - X L          for the pair (X, D) of the write
    W <- W + X^T D                               undoes the write
    L <- L + z_ct^T c,     c_ct = z_ct W         for each product z = c W^T before the write (gradient rule)
    L <- L + x^T a_ct,     x_ct = a_ct W^T       for each product a = x W before the write

The pairs follow from the stored results, without the weights, and are differentiated by `jax.vjp`.

Shape letters: `B` examples, `T` steps, `H` heads, `R` keys read, `K`/`V` key and value features, `I`/`O` inputs and
outputs of a layer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax._refuse import constant, reverse_only
from mnm_jax._vary import is_zero
from mnm_jax.memory._kernels.dots import PRODUCTS, SUMS, Dots
from mnm_jax.memory._kernels.on_chip import ONE_DERIVATIVE, scan_on_chip
from mnm_jax.memory._kernels.steps import gradient_deltas, steps
from mnm_jax.memory._network import Network
from mnm_jax.memory._rules import GradientRule, SizedRule

Array = jax.Array
Weights = tuple[Array, ...]
KernelRule = SizedRule | GradientRule


class StepTokens(NamedTuple):
    """Keys, targets and rates of all steps; within a kernel, of one step of one example, without the axes `B` and `T`.

    Attributes:
      keys: `[B, T, H, K]`.
      targets: `[B, T, H, O]` per layer; of the last layer alone for the gradient rule.
      rate: `[B, T, 1, 1]`.
      queries: `[B, T, R, K]`; None if nothing is read.
    """

    keys: Any
    targets: Any
    rate: Any
    queries: Any


class Results(NamedTuple):
    """The results of the products with the weights, per layer except `back`; within a kernel, without `B` and `T`.

    Attributes:
      before: products of the write keys before the write, `[B, T, H, O]`.
      back: products with W^T before the write, in the order in which the rule computes them, `[B, T, H, I]`.
      kept: products of the write keys after the write, `[B, T, H, O]`.
      read: products of the read keys after the write, `[B, T, R, O]`; None if nothing is read.
    """

    before: Any
    back: Any
    kept: Any
    read: Any


def run(network: Network, rule: KernelRule, weights: Weights, tokens: StepTokens) -> tuple[Weights, Results]:
    """Returns the weights after all steps, `[B, I, O]` per layer, and the results of all products.

    It has a reverse-mode derivative of first order; other derivatives raise a TypeError.

    Args:
      network: the architecture, without biases.
      rule: the local, the delta or the gradient rule.
      weights: the weights before the first step, `[B, I, O]` per layer.
      tokens: keys, targets and rates.
    """
    weights, tokens = reverse_only((weights, tokens), ONE_DERIVATIVE)
    # Compiled, since a `jax.shard_map` that is not compiled refuses symbolic zeros.
    return jax.jit(partial(_run, network, rule), inline=True)(weights, tokens)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(network: Network, rule: KernelRule, weights: Weights, tokens: StepTokens) -> tuple[Weights, Results]:
    step, on_gpu = (partial(_step, dots, network, rule) for dots in (PRODUCTS, SUMS))
    return scan_on_chip(step, weights, tokens, on_gpu=on_gpu)


def _forward(network: Network, rule: KernelRule, *arguments: Any) -> tuple[tuple[Weights, Results], Any]:
    weights, tokens = jax.tree.map(lambda leaf: leaf.value, arguments)
    last, results = _run(network, rule, weights, tokens)
    return (last, results), (last, tokens, results)


def _backward(network: Network, rule: KernelRule, residuals: Any, cotangents: Any) -> tuple[Weights, StepTokens]:
    last, tokens, results = residuals
    last_ct, results_ct = cotangents
    last_ct = tuple(jnp.zeros_like(w) if is_zero(ct) else ct for w, ct in zip(last, last_ct, strict=True))
    # A cotangent that is known to be zero is not loaded.
    results_ct = jax.tree.map(lambda ct: None if is_zero(ct) else ct, results_ct, is_leaf=is_zero)
    step, on_gpu = (partial(_step_back, dots, network, rule) for dots in (PRODUCTS, SUMS))
    given = constant(((last, last_ct), (tokens, results, results_ct)), ONE_DERIVATIVE)
    (_, weights_ct), tokens_ct = scan_on_chip(step, *given, reverse=True, on_gpu=on_gpu)
    return weights_ct, tokens_ct


_run.defvjp(_forward, _backward, symbolic_zeros=True)


def _step(dots: Dots, network: Network, rule: KernelRule, weights: Weights, now: StepTokens) -> tuple[Weights, Results]:
    """Returns the weights `[I, O]` of one example after a step, and the results of the step's products."""
    before, back = _products(dots, network, weights, now.keys), list[Array]()

    def times_transposed(layer: int, c: Array) -> Array:
        back.append(dots.times_transposed(c, weights[layer]))
        return back[-1]

    pairs = _pairs(dots, network, rule, times_transposed, now.keys, before, now.targets, now.rate)
    weights = _add_outer(dots, weights, [(x, -delta) for x, delta in pairs])
    kept, read = (None if x is None else _products(dots, network, weights, x) for x in (now.keys, now.queries))
    return weights, Results(before=before, back=tuple(back), kept=kept, read=read)


def _step_back(dots: Dots, network: Network, rule: KernelRule, carry: Any, at_step: Any) -> tuple[Any, StepTokens]:
    """Returns the weights before a step with their cotangent, and the cotangents of the step's tokens."""
    weights, weights_ct = carry
    now, results, results_ct = at_step
    read = [] if now.queries is None else [(now.queries, results.read, results_ct.read)]
    after_ct = []
    for x, result, result_ct in [(now.keys, results.kept, results_ct.kept), *read]:
        weights_ct, x_ct = _products_vjp(dots, network, weights, weights_ct, x, result, result_ct)
        after_ct.append(x_ct)

    layers: list[int] = []  # of the products with W^T

    def replay(x: Array, before: Weights, back: Weights, targets: Weights, rate: Array) -> tuple[Any, list[Array]]:
        operands: list[Array] = []

        def stored(layer: int, c: Array) -> Array:
            layers.append(layer)
            operands.append(c)
            return back[len(operands) - 1]

        return _pairs(dots, network, rule, stored, x, before, targets, rate), operands

    given = now.keys, results.before, results.back, now.targets, now.rate
    (pairs, operands), vjp = jax.vjp(replay, *given)
    pairs_ct = tuple(
        (-dots.times_transposed(delta, ct), -dots.times(inputs, ct))
        for (inputs, delta), ct in zip(pairs, weights_ct, strict=True)
    )
    weights = _add_outer(dots, weights, pairs)  # undoes the write
    no_pairs, no_operands = jax.tree.map(jnp.zeros_like, (pairs_ct, operands))
    given_ct = vjp((pairs_ct, no_operands))
    sums = list(weights_ct)
    for place in range(len(operands) - 1, -1, -1):  # an operand depends on the results of earlier products
        layer, result_ct = layers[place], _sum(given_ct[2][place], results_ct.back[place])
        sums[layer] = sums[layer] + dots.outer(result_ct, operands[place])
        operands_ct = [*no_operands]
        operands_ct[place] = dots.times(result_ct, weights[layer])
        given_ct = jax.tree.map(jnp.add, given_ct, vjp((no_pairs, operands_ct)))
    x_ct, before_ct, _, targets_ct, rate_ct = given_ct
    before_ct = tuple(map(_sum, before_ct, results_ct.before))
    weights_ct, more_ct = _products_vjp(dots, network, weights, tuple(sums), now.keys, results.before, before_ct)
    queries_ct = after_ct[1] if read else None
    tokens_ct = StepTokens(keys=x_ct + more_ct + after_ct[0], targets=targets_ct, rate=rate_ct, queries=queries_ct)
    return (weights, weights_ct), tokens_ct


def _sum(a: Array, b: Array | None) -> Array:
    return a if b is None else a + b


def _add_outer(dots: Dots, weights: Weights, pairs: Any) -> Weights:
    """Returns W + X^T D of every layer."""
    return tuple(w + dots.outer(*pair) for w, pair in zip(weights, pairs, strict=True))


def _products(dots: Dots, network: Network, weights: Weights, x: Array) -> Weights:
    """Returns the results of the products of every layer for keys `[H, K]`."""
    results: list[Array] = []
    for w in weights:
        results.append(dots.times(network.activation(results[-1]) if results else x, w))
    return tuple(results)


def _products_vjp(
    dots: Dots, network: Network, weights: Weights, weights_ct: Weights, x: Array, results: Weights, results_ct: Any
) -> tuple[Weights, Array]:
    """Returns `weights_ct` plus the cotangents of the weights by `_products`, and the cotangent of the keys."""
    sums, ct = list(weights_ct), jnp.zeros_like(results[-1])
    for layer in range(network.depth - 1, -1, -1):
        if results_ct[layer] is not None:
            ct = ct + results_ct[layer]
        inputs, slope = jax.vjp(network.activation, results[layer - 1]) if layer else (x, None)
        sums[layer] = sums[layer] + dots.outer(inputs, ct)
        ct = dots.times_transposed(ct, weights[layer])
        ct = slope(ct)[0] if slope else ct
    return tuple(sums), ct


def _pairs(
    dots: Dots,
    network: Network,
    rule: KernelRule,
    times_transposed: Callable[[int, Array], Array],
    x: Array,
    before: Weights,
    targets: Weights,
    rate: Array,
) -> tuple[tuple[Array, Array], ...]:
    """Returns the pair (X, D) of every layer, from the results of the products before the write.

    `times_transposed` returns c W^T for a layer and c; only the gradient rule calls it.
    """
    inputs = [x, *map(network.activation, before[:-1])]
    if isinstance(rule, GradientRule):

        def backward(cotangent: Array) -> list[Array]:
            deltas = [cotangent]
            for layer in range(network.depth - 1, 0, -1):
                slope = jax.vjp(network.activation, before[layer - 1])[1]
                deltas = [*slope(times_transposed(layer, deltas[0])), *deltas]
            return deltas

        deltas = gradient_deltas(dots, rule, inputs, before[-1] - targets[-1], backward)
        pairs = list(zip(inputs, deltas, strict=True))
    else:
        outputs = [*inputs[1:], before[-1]]
        errors = [z - target for z, target in zip(outputs, targets, strict=True)]
        pairs = [steps(dots, rule, x, error) for x, error in zip(inputs, errors, strict=True)]
    return tuple((x, rate * delta) for x, delta in pairs)
