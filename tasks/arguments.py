"""Arguments of tasks as plain Python values."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnm_jax._checks import check_sizes


def unwrap_numbers(task: Any) -> None:
    """Replaces NumPy numbers among the fields of a frozen dataclass by Python's, whose dtype JAX adapts to arrays."""
    for field in dataclasses.fields(task):
        if isinstance(value := getattr(task, field.name), np.generic):
            object.__setattr__(task, field.name, value.item())


def to_sizes(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """Returns the sizes of further evaluation sets as a tuple; a config read from JSON has a list.

    Raises:
      TypeError, ValueError: unless all are whole numbers above 0.
    """
    if not isinstance(sizes, tuple | list):
        raise TypeError(f"{name} must be a tuple of integers such as (30, 50), got {sizes!r}.")
    for size in sizes:
        check_sizes(**{f"every one of {name}": size})
    return tuple(map(int, sizes))
