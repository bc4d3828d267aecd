"""Writes and reads a sequence of given keys and values in the kernel, and refuses settings that it does not support.

Shape letters: `T` time steps, `B` examples, `H` heads, `R` keys read, `K`/`V` key and value features.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp

from mnm_jax.memory._chunks.targets import compute_targets
from mnm_jax.memory._kernels.needs import Need, check_needs, memory_needs, size_need
from mnm_jax.memory._kernels.writes import Results, StepTokens, run
from mnm_jax.memory._memory import Memory, measures
from mnm_jax.memory._options import normalise
from mnm_jax.memory._pair_memory import PairMemory, norm_of_pairs, scale_pairs
from mnm_jax.memory._rules import GradientRule, LocalRule, SizedRule
from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._storage.products import shared_times
from mnm_jax.memory._types import MemoryParams, Storage, WriteInfo

Array = jax.Array
_ROWS = (1, 2, 4, 8)
# Where the kernel was measured to be faster than XLA's program (results/accelerator), with T = 128, B = 64, H = R = 1:
# 3.4 times for layers of 64, 1.5 times for layers of 128.
_SIZES, _LEAST_STEPS, _MOST_EXAMPLES = ((64,) * 4, (128,) * 4), 128, 64
_KIBIBYTES = 384  # three layers of 128 x 128, the largest that were compiled; 96 fit in the registers of an H100


def check_kernel(memory: Memory, keys: Array, read_keys: Array, reset: Array | None) -> None:
    """Raises ValueError unless the kernel can write and read keys `[T, B, ., K]`."""
    check_needs([(isinstance(memory, PairMemory), "a memory that is written in pairs", type(memory).__name__)])
    assert isinstance(memory, PairMemory)
    check_needs(_needs(memory, keys, read_keys, reset))


def wins(memory: Memory, keys: Array, read_keys: Array, reset: Array | None) -> bool:
    """Returns whether the kernel supports a memory, and was measured to be faster on a GPU for its sizes.

    Args:
      memory: the memory.
      keys: `[T, B, H, K]`.
      read_keys: `[T, B, R, K]`.
      reset: `[T, B]` bool; None: no resets.
    """
    if not isinstance(memory, PairMemory) or type(memory.rule) is not LocalRule:
        return False
    steps, batch, heads = keys.shape[:3]
    measured = memory.network.sizes in _SIZES and heads == read_keys.shape[2] == 1
    measured = measured and steps >= _LEAST_STEPS and batch <= _MOST_EXAMPLES
    return measured and all(met for met, _, _ in _needs(memory, keys, read_keys, reset))


def _needs(memory: PairMemory, keys: Array, read_keys: Array, reset: Array | None) -> list[Need]:
    """Returns the needs of the kernel for the arguments of `wins`."""
    options = memory.options
    return [
        (options.inner_steps == 1, "a memory with inner_steps=1", f"inner_steps={options.inner_steps}"),
        (options.max_norm is None, "a memory with max_norm=None", f"max_norm={options.max_norm}"),
        (not options.never_worse, "a memory with never_worse=False", "never_worse=True"),
        (options.optimizer is None, "a memory with optimizer=None", f"optimizer={options.optimizer}"),
        (not options.forget, "a memory without a forget gate", "forget=True"),
        *memory_needs(memory, keys.dtype, GradientRule),
        size_need(memory, "an example", _KIBIBYTES),
        (keys.shape[2] in _ROWS, "keys to have 1, 2, 4 or 8 heads", f"shape {keys.shape}"),
        (read_keys.shape[2] in (0, *_ROWS), "read_keys to have 0, 1, 2, 4 or 8 rows", f"shape {read_keys.shape}"),
        (reset is None, "reset=None", "resets"),
    ]


class _Stored:
    """A storage that returns stored results of products, with which a rule recomputes its pairs without weights."""

    def __init__(self, results: Results):
        self._results, self._back = results, iter(results.back)

    def product(self, layer: int, x: Array) -> Array:
        """See `Storage`."""
        del x
        return self._results.before[layer]

    def product_transposed(self, layer: int, c: Array) -> Array:
        """See `Storage`."""
        del layer, c
        return next(self._back)

    def slow_product(self, x: Array, kernel: Array) -> Array:
        """See `Storage`."""
        return shared_times(x, kernel)


def write_read_all(
    memory: Memory,
    params: MemoryParams,
    state: MemoryState,
    keys: Array,
    values: Array,
    rate: Array,
    read_keys: Array,
    mask: Array | None,
) -> tuple[MemoryState, WriteInfo, Array]:
    """Writes and reads all steps; the result is that of `Memory.write_read` step by step.

    Args:
      memory: the memory, which passes `check_kernel`.
      params: slow parameters.
      state: the state before the first step.
      keys: `[T, B, H, K]`.
      values: `[T, B, H, V]`.
      rate: `[T, B]`.
      read_keys: `[T, B, R, K]`.
      mask: `[T, B]` bool, False = padding; None: no padding.

    Returns:
      The state after the last step, the measures `[T, B]`, and the values `[T, B, R, V]`.
    """
    assert isinstance(memory, PairMemory) and isinstance(memory.rule, SizedRule | GradientRule)  # by `check_kernel`
    network, rule, how = memory.network, memory.rule, memory.options.key_norm
    steps, batch = rate.shape

    def join(x: Array) -> Array:
        return jnp.swapaxes(x, 0, 1).reshape(batch * steps, *x.shape[2:])

    def divide(x: Any) -> Any:
        return x.reshape(batch, steps, *x.shape[1:])

    def without_padding(x: Array) -> Array:
        return x if mask is None else jnp.where(jnp.expand_dims(join(mask), range(1, x.ndim)), x, 0)

    keys, queries, values, rate = (without_padding(join(x)) for x in (keys, read_keys, values, rate))
    keys, queries = normalise(keys, how), normalise(queries, how)
    targets: tuple[Array, ...] = (values,)
    if isinstance(rule, SizedRule):
        targets = compute_targets(network, rule, params.targets, keys, values)
    tokens = StepTokens(
        keys=divide(keys),
        targets=tuple(map(divide, targets)),
        rate=divide(rate[:, None, None]),
        queries=divide(queries) if queries.shape[1] else None,
    )
    weights, results = run(network, rule, state.weights, tokens)
    results = jax.tree.map(lambda x: x.reshape(batch * steps, *x.shape[2:]), results)

    pairs, answers = rule.pairs(network, params.targets, cast(Storage, _Stored(results)), keys, values)
    info = measures(answers, results.kept[-1], values, norm_of_pairs(scale_pairs(pairs, rate)))
    reads = results.read[-1] if results.read else jnp.zeros((batch * steps, 0, memory.value_size), values.dtype)
    info, reads = jax.tree.map(lambda x: jnp.swapaxes(divide(without_padding(x)), 0, 1), (info, reads))
    return MemoryState(weights), info, reads
