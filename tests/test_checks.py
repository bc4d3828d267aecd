"""Tests the checks on arguments: what passes, and that each error names the argument, its value and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnm_jax import _checks as c


@pytest.mark.parametrize(
    "check",
    [
        lambda: c.check_choice("how", "a", {"a": 1, "b": 2}),
        lambda: c.check_choice("how", None, (None, "l2")),
        lambda: c.check_sizes(n=1, m=np.int32(7), k=2**31 - 1),
        lambda: c.check_sizes(least=0, seed=0),
        lambda: c.check_finite(x=-1, y=np.float32(0.5), z=10**300),
        lambda: c.check_not_negative(x=0, y=0.0),
        lambda: c.check_positive(x=1e-30),
        lambda: c.check_fraction(x=0, y=1.0),
        lambda: c.check_flags(x=True, y=np.bool_(False)),
        lambda: c.check_functions(f=len, g=jax.nn.relu),
        lambda: c.check_dtype(a=jnp.bfloat16, b="float32", c=np.dtype("float16")),
        lambda: c.check_array("x", jnp.ones((2, 3)), "B F", F=3),
        lambda: c.check_array("x", np.ones(()), ""),
        lambda: c.check_array("mask", np.ones((2, 3), bool), "T B", jnp.bool_),
        lambda: c.check_array("tokens", np.ones((2, 3), np.uint8), "T B", jnp.integer),
        lambda: jax.eval_shape(lambda x: c.check_array("x", x, "B F", B=2), np.ones((2, 3))),
    ],
)
def test_right_values_pass(check):
    check()


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (lambda: c.check_choice("how", "c", {"a": 1, "b": 2}), ValueError, "^how must be one of 'a', 'b', got 'c'"),
        (lambda: c.check_choice("how", ["a"], {"a": 1}), ValueError, r"^how must be one of 'a', got \['a'\]"),
        (lambda: c.check_choice("how", np.ones(2), (None, "a")), ValueError, "^how must be one of None, 'a', got"),
        (lambda: c.check_sizes(a=1, heads=0), ValueError, "^heads must be >= 1, got 0"),
        (lambda: c.check_sizes(heads=2.0), TypeError, "^heads must be an integer >= 1, got 2.0 of type float: pass"),
        (lambda: c.check_sizes(seeds=True), TypeError, "^seeds must be an integer >= 1, got True of type bool"),
        (lambda: c.check_sizes(least=0, seed=-1), ValueError, "^seed must be >= 0, got -1"),
        (lambda: c.check_sizes(n=None), TypeError, "^n must be an integer >= 1, got None"),
        (lambda: c.check_finite(gain=np.nan), ValueError, "^gain must be finite, got nan"),
        (lambda: c.check_finite(gain=-np.inf), ValueError, "^gain must be finite, got -inf"),
        (lambda: c.check_finite(gain=10**400), ValueError, "^gain must be finite, got 1000"),
        (lambda: c.check_finite(gain="1"), TypeError, "^gain must be a number, got '1' of type str: pass a float"),
        (lambda: c.check_finite(gain=True), TypeError, "^gain must be a number, got True of type bool"),
        (lambda: c.check_finite(gain=1j), TypeError, "^gain must be a number, got 1j of type complex"),
        (lambda: c.check_not_negative(gain=-1), ValueError, "^gain must be >= 0, got -1"),
        (lambda: c.check_positive(rate=0.0), ValueError, "^rate must be > 0, got 0.0"),
        (lambda: c.check_fraction(rate=1.5), ValueError, r"^rate must be in \[0, 1\], got 1.5"),
        (lambda: c.check_flags(bias=1), TypeError, "^bias must be True or False, got 1 of type int"),
        (lambda: c.check_functions(f="tanh"), TypeError, "^f must be a function, got 'tanh' .* the function itself"),
        (lambda: c.check_dtype(d=jnp.int32), TypeError, "^d must be a floating-point dtype such as jnp.float32, got"),
        (lambda: c.check_dtype(d="tanh"), TypeError, "^d must be a floating-point dtype .* got 'tanh' of type str"),
        (lambda: c.check_dtype(d=float), ValueError, "^d must be an enabled dtype, got float64: set JAX_ENABLE_X64=1"),
        (lambda: c.check_dtype(d=None), TypeError, "^d must be a floating-point dtype .* got None"),
        (lambda: c.check_array("x", [1.0], "B F"), TypeError, r"^x must be an array \[B, F\], got \[1.0\] of type"),
        (lambda: c.check_array("x", None, "B"), TypeError, r"^x must be an array \[B\], got None .* use jnp.asarray"),
        (lambda: c.check_array("x", np.arange(3), "B"), TypeError, "^x must be .* floating-point numbers, got dtype"),
        (lambda: c.check_array("x", np.ones(3, complex), "B"), TypeError, "^x must .* got dtype complex128: use"),
        (lambda: c.check_array("x", jax.random.key(0), ""), TypeError, "^x must be .* got dtype key"),
        (lambda: c.check_array("m", np.ones(3), "T", jnp.bool_), TypeError, "^m must be an array of bools, got"),
        (lambda: c.check_array("x", np.ones((2, 4)), "B F", F=3), ValueError, r"\[B, F\] = \[B, 3\], got \(2, 4\)"),
        (lambda: c.check_array("x", np.ones(4), "B F"), ValueError, r"^x must have shape \[B, F\], got \(4,\)"),
        (lambda: c.check_array("x", np.ones((1,)), ""), ValueError, r"^x must have shape \[\], got \(1,\)"),
    ],
)
def test_wrong_values_are_named(check, error, message):
    with pytest.raises(error, match=message):
        check()


def test_a_long_value_is_cut():
    with pytest.raises(TypeError) as caught:
        c.check_sizes(n="x" * 1000)
    assert len(str(caught.value)) < 150
