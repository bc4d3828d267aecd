"""Conditions that a memory must fulfil to run in a kernel, and the error that names the first one it does not."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mnm_jax.memory._pair_memory import PairMemory
from mnm_jax.memory._rules import DeltaRule, LocalRule, Rule

Need = tuple[bool, str, Any]  # whether it is met, the setting that it requires, the setting given
_ACTIVATIONS = (jnp.tanh, jax.nn.relu, jax.nn.sigmoid, jax.nn.silu)


def size_need(memory: PairMemory, of: str, bound: int, when: str = "") -> Need:
    """Returns the need that weights and cotangents in single precision fit in `bound` KiB."""
    size = sum(fan_in * fan_out for fan_in, fan_out in memory.network.shapes) * 8 / 1024
    return size <= bound, f"the weights of {of} and their cotangents to fit in {bound} KiB{when}", f"{size:.0f} KiB"


def memory_needs(memory: PairMemory, dtype: Any, *more_rules: type[Rule]) -> list[Need]:
    """Returns the needs of a kernel for the local rule, the delta rule and more rules, for a dtype of computation."""
    network, rule = memory.network, memory.rule
    sizes = {"key_size": memory.key_size, "value_size": memory.value_size}
    sizes |= {f"hidden_sizes[{place}]": size for place, size in enumerate(network.sizes[1:-1])}
    rules: tuple[type[Rule], ...] = (LocalRule, DeltaRule, *more_rules)
    names = " or ".join(kind.__name__ for kind in rules)
    needs: list[Need] = [
        (type(rule) in rules, f"a memory with {names}", type(rule).__name__),  # a subclass may compute something else
        (not getattr(rule, "write_through", False), "a memory with write_through=False", "write_through=True"),
        (not memory.options.momentum, "a memory without momentum", "momentum=True"),
        (not network.use_bias, "a memory without biases", "use_bias=True"),
        (
            network.depth == 1 or network.activation in _ACTIVATIONS,
            f"an activation among {', '.join(f.__name__ for f in _ACTIVATIONS)}",
            network.activation,
        ),
        (dtype == jnp.float32, "dtype=float32", dtype),
        (memory.param_dtype == jnp.float32, "a memory with param_dtype=float32", memory.param_dtype),
    ]
    for name, size in sizes.items():
        needs.append((size >= 16 and size & (size - 1) == 0, f"{name} to be 16, 32, 64 or a higher power of 2", size))
    return needs


def check_needs(needs: Iterable[Need]) -> None:
    """Raises ValueError for the first need that is not met."""
    for met, what, got in needs:
        if not met:
            raise ValueError(f"backend='pallas' needs {what}, got {got}: change this setting, or pass backend='auto'.")
