"""Checks that a memory can be written in chunks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax.memory._chunks.targets import compute_targets
from mnm_jax.memory._memory import Memory, check_is_memory
from mnm_jax.memory._options import PAPER, changed
from mnm_jax.memory._pair_memory import PairMemory
from mnm_jax.memory._rules import ErrorRule, GradientRule, SizedRule, SnapshotRule


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
    fan_in, fan_out = memory.network.shapes[0]
    with jax.ensure_compile_time_eval():
        row, small = (jnp.asarray(np.cos(np.arange(n))[None, None], jnp.float32) for n in (fan_in, fan_out))
        for error in (small, 1e3 * small):
            (pair,) = rule.steps([row], [error])
            for found, expected in zip(pair, (row, rule.step_scale(row, fan_out) * error), strict=True):
                if not np.allclose(found, expected, rtol=1e-4):
                    raise ValueError(
                        f"the steps of the rule {type(rule).__name__} must be, for one row, the pair of its input and "
                        "its error times `step_scale`, which cannot depend on the error: correct step_scale, give "
                        "rule_memory a SnapshotRule, or run this memory step by step in MNMCell."
                    )
