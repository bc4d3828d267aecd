"""Checks that a memory can be written in chunks."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax._precision import wide_dtype
from mnm_jax.memory._chunks.targets import compute_targets
from mnm_jax.memory._memory import Memory, check_is_memory
from mnm_jax.memory._options import PAPER, changed
from mnm_jax.memory._pair_memory import PairMemory
from mnm_jax.memory._rules import ErrorRule, GradientRule, HebbianRule, SizedRule, SnapshotRule
from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._types import Pair


def check_memory(memory: Memory) -> PairMemory:
    """Returns the memory; raises TypeError or ValueError if it cannot be written in chunks."""
    check_is_memory(memory)
    remedy = "or run this memory step by step in MNMCell."
    if not isinstance(memory, PairMemory):
        raise ValueError(
            f"memory must be one that is written in pairs, got {type(memory).__name__}: use gradient_memory, "
            f"local_memory or matrix_memory, {remedy}"
        )
    rule, options = memory.rule, memory.options
    if not isinstance(rule, ErrorRule | SnapshotRule):
        raise ValueError(
            f"memory must have a rule that can write chunks of tokens, got the rule {rule}: give rule_memory an "
            f"ErrorRule or a SnapshotRule, {remedy}"
        )
    _check_pairs(rule)
    if isinstance(rule, ErrorRule):
        _probe_targets(memory, rule)
        _probe_steps(memory, rule)
    else:
        _probe_rows(memory, rule)
    for name in changed(options, "optimizer", "inner_steps", "max_norm", "never_worse"):
        raise ValueError(
            f"memory must not have WriteOptions({name}={getattr(options, name)!r}), which the chunks of a layer "
            f"cannot follow: leave {name}={getattr(PAPER, name)}, {remedy}"
        )
    return memory


def _check_pairs(rule: ErrorRule | SnapshotRule) -> None:
    """Raises ValueError if `pairs`, which chunks do not call, may differ from the function that they call."""
    if isinstance(rule, ErrorRule):
        own, place = type(rule).pairs is not ErrorRule.pairs, "steps"
    else:
        place = "linearise" if isinstance(rule, GradientRule) else "row_pairs"
        classes = type(rule).__mro__
        first = lambda name: next(i for i, kind in enumerate(classes) if name in vars(kind))  # noqa: E731
        own = first("pairs") < first(place)
    if own:
        raise ValueError(
            f"memory must have a rule whose `pairs` follow from its `{place}`, which the chunks of a layer call, got "
            f"{type(rule).__name__} with its own `pairs`: put the change into `{place}`, or run this memory step by "
            "step in MNMCell."
        )


def _probe_targets(memory: PairMemory, rule: ErrorRule) -> None:
    """Computes targets of abstract shapes, which raises ValueError if they depend on the fast weights."""
    keys, values = (jax.ShapeDtypeStruct((1, 1, n), memory.param_dtype) for n in (memory.key_size, memory.value_size))
    params = jax.eval_shape(memory.init, jax.random.key(0))
    jax.eval_shape(partial(compute_targets, memory.network, rule), params.targets, keys, values)


def _probe_steps(memory: PairMemory, rule: ErrorRule) -> None:
    """Raises ValueError if a user's `steps` differ from `step_scale`, for a small and a large error of one row."""
    if (type(rule).steps, type(rule).step_scale) == (SizedRule.steps, SizedRule.step_scale):
        return
    name, shapes, rng = type(rule).__name__, memory.network.shapes, np.random.default_rng(0)
    layers = range(len(shapes))
    together = [[layer] for layer in layers] if rule.write_through else [list(layers)]
    with jax.ensure_compile_time_eval(), jax.default_matmul_precision("highest"):
        rows, small = ([_normal(rng, 1, 1, n) for n in sizes] for sizes in zip(*shapes, strict=True))
        for size, called in itertools.product((1.0, 1e3), together):
            errors = [size * small[layer] for layer in called]
            pairs = rule.steps([rows[layer] for layer in called], errors)
            if len(pairs) != len(called):
                raise ValueError(
                    f"`steps` of the rule {name} must return one Pair per input, got {len(pairs)} for {len(called)} "
                    "(with write_through each call has one input)."
                )
            for layer, error, pair in zip(called, errors, pairs, strict=True):
                scale = rule.step_scale(rows[layer], error.shape[-1])
                if not _agree(pair, Pair(rows[layer], scale * error)):
                    raise ValueError(
                        f"`steps` of the rule {name} must return Pair(x, step_scale * error) for one row, but differs "
                        f"in layer {layer}; step_scale cannot depend on the error or the layer: correct it, give "
                        "rule_memory a SnapshotRule, or run this memory step by step in MNMCell."
                    )


def _probe_rows(memory: PairMemory, rule: SnapshotRule) -> None:
    """Raises ValueError if a user's `row_pairs` of two rows differ from its `pairs` of each row with one head."""
    if type(rule) in (GradientRule, HebbianRule):
        return
    network, name, rng = memory.network, type(rule).__name__, np.random.default_rng(0)
    draw = partial(_normal, rng, dtype=wide_dtype(memory.param_dtype))
    with jax.ensure_compile_time_eval(), jax.default_matmul_precision("highest"):
        # Near the parameters of `init`: its ones or zeros could hide that one of the functions ignores them.
        targets = jax.tree.map(partial(_moved, rng), rule.init(network, jax.random.key(0), memory.param_dtype))
        weights = MemoryState(tuple(draw(1, *shape) / shape[0] ** 0.5 for shape in network.shapes))
        keys, values = draw(1, 2, memory.key_size), draw(1, 2, memory.value_size)
        found = rule.row_pairs(network, targets, weights, keys, values)
        shapes = [(pair.inputs.shape, pair.delta.shape) for pair in found]
        wanted = [((1, 2, fan_in), (1, 2, fan_out)) for fan_in, fan_out in network.shapes]
        if shapes != wanted:
            raise ValueError(
                f"`row_pairs` of the rule {name} must return one Pair per layer with a row for each key, of the shapes "
                f"{wanted} for two keys, got {shapes}."
            )
        for row in (slice(0, 1), slice(1, 2)):
            expected, _ = rule.pairs(network, targets, weights, keys[:, row], values[:, row])
            for layer, ((x, delta), pair) in enumerate(zip(found, expected, strict=True)):
                if not _agree(Pair(x[:, row], delta[:, row]), pair):
                    raise ValueError(
                        f"`row_pairs` of the rule {name} must return for each row what `pairs` returns for this row "
                        f"alone, but differs in layer {layer}: correct one of the two functions, or run this memory "
                        "step by step in MNMCell."
                    )


def _normal(rng: np.random.Generator, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), dtype)


def _moved(rng: np.random.Generator, leaf: jax.Array) -> jax.Array:
    """Returns a parameter near the given one; integers and keys are unchanged."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return leaf + 0.1 * _normal(rng, *leaf.shape, dtype=leaf.dtype)


def _agree(*pairs: Pair) -> bool:
    """Returns whether two pairs of one example have the same product, sum_r x_r (x) delta_r."""
    # A rule that closes over a traced value has no numbers yet.
    if any(isinstance(rows, jax.core.Tracer) for rows in jax.tree.leaves(pairs)):
        return True
    a, b = (np.einsum("ri,ro->io", *(np.asarray(rows[0], np.float64) for rows in pair)) for pair in pairs)
    # A parameter that moved out of its range makes both products NaN.
    return np.allclose(a, b, rtol=0, atol=1e-4 * np.nanmax(np.abs(b), initial=0), equal_nan=True)
