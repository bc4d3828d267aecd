"""Checks on arguments that a user passes.

Each error is a ValueError or a TypeError that names the argument, its value and the remedy.
"""

import math
import numbers
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.typing import DTypeLike

_KINDS = {jnp.floating: "floating-point numbers", jnp.integer: "integers", jnp.bool_: "bools"}
_NUMBERS: dict[Any, type] = {jnp.floating: float, jnp.integer: int, jnp.bool_: bool}


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raises ValueError unless a value is one of the values that an argument accepts; the message lists them."""
    kinds = tuple({type(choice) for choice in choices})
    if not isinstance(value, kinds) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_sizes(*, least: int = 1, **sizes: Any) -> None:
    """Raises TypeError unless every named value is an integer, and ValueError unless it is in [least, 2**31)."""
    for name, size in sizes.items():
        if not isinstance(size, numbers.Integral) or isinstance(size, bool):
            raise TypeError(f"{name} must be an integer >= {least}, got {show(size)}: pass an int.")
        if size < least:
            raise ValueError(f"{name} must be >= {least}, got {size}.")
        if int(size) >= 2**31:  # JAX stores shapes and counters as int32
            raise ValueError(f"{name} must be < 2**31, got {size}.")


def check_finite(**values: Any) -> None:
    """Raises TypeError unless every named value is a real number, and ValueError unless it is finite."""
    for name, value in values.items():
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {show(value)}: pass a float.")
        try:
            finite = math.isfinite(value)
        except OverflowError:  # an integer beyond the largest float
            finite = False
        if not finite:
            raise ValueError(f"{name} must be finite, got {value}.")


def check_not_negative(**values: Any) -> None:
    """Checks as `check_finite` does, and raises ValueError unless every named value is at least 0."""
    check_finite(**values)
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}.")


def check_positive(**values: Any) -> None:
    """Checks as `check_finite` does, and raises ValueError unless every named value is above 0."""
    check_finite(**values)
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name} must be > 0, got {value}.")


def check_fraction(**values: Any) -> None:
    """Checks as `check_finite` does, and raises ValueError unless every named value is in [0, 1]."""
    check_finite(**values)
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}.")


def check_flags(**flags: Any) -> None:
    """Raises TypeError unless every named value is True or False."""
    for name, flag in flags.items():
        if not isinstance(flag, bool | np.bool_):
            remedy = f": pass static_argnames={name!r} to jit" if isinstance(flag, jax.core.Tracer) else ""
            raise TypeError(f"{name} must be True or False, got {show(flag)}{remedy}.")


def check_functions(**functions: Any) -> None:
    """Raises TypeError unless every named value can be called."""
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {show(function)}: pass the function itself.")


def check_dtype(**dtypes: Any) -> None:
    """Raises TypeError unless every named value is a floating-point dtype, and ValueError if it is not enabled."""
    for name, dtype in dtypes.items():
        try:
            known = jnp.issubdtype(jnp.dtype(dtype), jnp.floating) and dtype is not None
        except TypeError:
            known = False
        if not known:
            raise TypeError(f"{name} must be a floating-point dtype such as jnp.float32, got {show(dtype)}.")
        if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
            raise ValueError(f"{name} must be an enabled dtype, got {jnp.dtype(dtype)}: set JAX_ENABLE_X64=1.")


def check_array(name: str, array: Any, axes: str, dtype: Any = jnp.floating, **sizes: int) -> None:
    """Checks the kind and the shape of an array; only its shape and dtype are read, so that it may be traced.

    Args:
      name: name of the argument.
      array: the argument.
      axes: letters of its axes, such as "B H K".
      dtype: `jnp.floating`, `jnp.integer` or `jnp.bool_`.
      **sizes: sizes of the axes by letter; an axis without one may have any size.

    Raises:
      TypeError: for anything that is no array, or an array of another kind.
      ValueError: for another shape.
    """
    shape, kind = getattr(array, "shape", None), getattr(array, "dtype", None)
    letters = axes.split()
    wanted = [sizes.get(letter, letter) for letter in letters]
    is_vector = len(sizes) == len(letters) == 1  # of a known size, for which a number is easily meant
    if shape is None or kind is None:
        remedy = "jnp.asarray"
        if is_vector and isinstance(array, numbers.Real):
            remedy = f"jnp.full({wanted[0]}, {_NUMBERS[dtype](array)})"
        raise TypeError(f"{name} must be an array [{', '.join(letters)}], got {show(array)}: use {remedy}.")
    if not jnp.issubdtype(kind, dtype):
        raise TypeError(f"{name} must be an array of {_KINDS[dtype]}, got dtype {kind}: use astype.")
    if len(wanted) != len(shape) or any(w != n for w, n in zip(wanted, shape, strict=True) if not isinstance(w, str)):
        expected = f"[{', '.join(letters)}]" + f" = [{', '.join(map(str, wanted))}]" * bool(sizes)
        remedy = f": use jnp.full({wanted[0]}, {name})" if is_vector and shape == () else ""
        raise ValueError(f"{name} must have shape {expected}, got {tuple(shape)}{remedy}.")


def check_inputs(inputs: Any, axes: str, **sizes: int) -> None:
    """Checks inputs as `check_array` does; they may be bools, integers or floating-point numbers."""
    if inputs is None:
        raise TypeError(
            f"inputs must be an array [{', '.join(axes.split())}], got None: pass the carry first, then the inputs; "
            "for a new sequence, pass (None, inputs)."
        )
    kind = next((kind for kind in (jnp.integer, jnp.bool_) if is_kind(inputs, kind)), jnp.floating)
    check_array("inputs", inputs, axes, kind, **sizes)


def is_kind(leaf: Any, kind: Any) -> bool:
    """Returns whether a leaf is an array of a kind such as `jnp.floating`."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, kind)


def show(value: Any) -> str:
    """Returns the beginning of a value's repr, and its type."""
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} of type {type(value).__name__}"


def check_dtypes(dtype: DTypeLike | None, param_dtype: DTypeLike) -> DTypeLike:
    """Returns the dtype of the computation, `param_dtype` for None; raises TypeError unless both are real floats."""
    check_dtype(param_dtype=param_dtype)
    if dtype is None:
        return param_dtype
    check_dtype(dtype=dtype)
    return dtype


def check_rngs(rngs: Any) -> None:
    """Raises TypeError for anything that is no `nnx.Rngs`."""
    from flax import nnx  # here, since `mnm_jax.memory` needs only jax

    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"rngs must be an nnx.Rngs, got {rngs!r}: pass nnx.Rngs(seed).")


def check_input_shape(input_shape: tuple[int, ...]) -> Any:
    """Returns `B`; raises TypeError or ValueError unless the shape of one step's inputs is `(B, D)`."""
    if not isinstance(input_shape, tuple | list):
        raise TypeError(f"input_shape must be a tuple (B, D), got {input_shape!r}: pass inputs.shape of one step.")
    if len(input_shape) != 2:
        raise ValueError(f"input_shape must be (B, D), got {input_shape!r}: pass inputs.shape of one step.")
    if not export.is_symbolic_dim(input_shape[0]):
        check_sizes(least=0, **{"input_shape[0]": input_shape[0]})
    return input_shape[0]
