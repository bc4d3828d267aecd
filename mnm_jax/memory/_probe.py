"""Checks a user's write rule by evaluating it on abstract shapes.

Shape letters: `B` examples, `H` heads, `R` rows of a pair, `K`/`V` key and value features.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mnm_jax.memory._network import Network
from mnm_jax.memory._options import WriteOptions
from mnm_jax.memory._rules import Rule
from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._storage.transposed import TransposedState
from mnm_jax.memory._types import Pair, Storage

Array = jax.Array


def check_rule(network: Network, rule: Rule, dtype: jnp.dtype, options: WriteOptions) -> None:
    """Evaluates a user's rule on abstract shapes, two examples with three heads, and checks the shapes of its pairs."""
    batch, heads = 2, 3
    like = lambda *shape: jax.ShapeDtypeStruct((batch, *shape), dtype)  # noqa: E731

    def compute(targets: Any, weights: tuple[Array, ...], keys: Array, values: Array) -> Any:
        dense = MemoryState(weights)
        # Without gates and inner optimiser the rule runs in the fast forms, whose storages have no `weights`.
        storage: Storage = TransposedState.of(dense) if options.pairs_only else dense
        try:
            return rule.pairs(network, targets, storage, keys, values)
        except AttributeError as error:
            if not isinstance(getattr(error, "obj", None), TransposedState):
                raise
            raise TypeError(
                "rule must use the weights only through weights.product, weights.product_transposed and "
                f"weights.slow_product, or forward and backward, got weights.{error.name}: a write that needs more is "
                "one for custom_memory."
            ) from error

    result = jax.eval_shape(
        compute,
        jax.eval_shape(lambda key: rule.init(network, key, dtype), jax.random.key(0)),
        tuple(like(*shape) for shape in network.shapes),
        like(heads, network.sizes[0]),
        like(heads, network.sizes[-1]),
    )
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], tuple | list):
        raise TypeError(f"rule must return (pairs, answers), with one Pair per layer, got {result}.")
    pairs, answers = result
    if len(pairs) != network.depth or not all(isinstance(pair, Pair) for pair in pairs):
        layers = f"{network.depth} with hidden_sizes={network.sizes[1:-1]}"
        raise ValueError(f"rule must return one Pair per layer, {layers}, got {pairs}.")
    for layer, (pair, (fan_in, fan_out)) in enumerate(zip(pairs, network.shapes, strict=True)):
        rows = pair.inputs.shape[1:2]
        if rows == (0,) and options.pairs_only:
            raise ValueError(
                f"rule must return pairs with at least one row, got inputs {pair.inputs.shape} for layer {layer}: "
                "return a row of zeros for a layer that is not written."
            )
        if (pair.inputs.shape, pair.delta.shape) != ((batch, *rows, fan_in), (batch, *rows, fan_out)):
            raise ValueError(
                f"rule must return pairs of inputs [B, R, {fan_in}] and delta [B, R, {fan_out}] for layer {layer}, "
                f"got {pair.inputs.shape} and {pair.delta.shape} for B = {batch} and H = {heads}."
            )
    if getattr(answers, "shape", None) != (batch, heads, network.sizes[-1]):
        raise ValueError(
            f"rule must return answers [B, H, {network.sizes[-1]}], "
            f"got {getattr(answers, 'shape', answers)} for B = {batch} and H = {heads}."
        )
