"""Checks on arguments that a user passes; each error names the argument and its value."""

from collections.abc import Collection
from typing import Any


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Checks that a value is one of the values that an argument accepts.

    Raises:
      ValueError: if it is not one of them; the message lists the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_sizes(**sizes: int) -> None:
    """Checks that every named size is at least 1.

    Raises:
      ValueError: for the first size that is smaller.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be >= 1, got {size}.")


def check_not_negative(**values: float) -> None:
    """Checks that every named value is at least 0.

    Raises:
      ValueError: for the first value that is smaller.
    """
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must be >= 0, got {value}.")
