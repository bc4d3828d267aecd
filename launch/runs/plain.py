"""The content of a config as values that JSON has."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict


def plain_config(config: ConfigDict) -> dict[str, Any]:
    """Returns a config as it is read back from JSON: tuples become lists, and NumPy's numbers Python's.

    Raises:
      ValueError: for a value that JSON does not have; the message names its key.
    """
    return json.loads(json.dumps(plain_value(config.to_dict(), "")))


def plain_value(value: Any, name: str) -> Any:
    """Returns a value of a config with Python's numbers in place of NumPy's; tuples remain.

    Args:
      value: the value.
      name: its key, for the message.

    Raises:
      ValueError: for a value that JSON does not have; the message names its key.
    """
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain_value(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [plain_value(part, name) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    try:
        json.dumps(value)
    except TypeError as error:
        raise ValueError(
            f"{name} must be a number, a text, True, False, None, or a list or mapping of these, got {value!r} of type "
            f"{type(value).__name__}."
        ) from error
    return value
