"""Tests that a layer that breaks a contract fails its check; `tests/layers/test_contract.py` runs this library's."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mnm_jax import testing


class Sums(nnx.Module):
    """A layer that outputs the sum of all inputs so far; `fault` breaks one contract."""

    def __init__(self, fault="", dtype=jnp.float32, param_dtype=jnp.float32):
        self.features, self.fault, self.dtype = 4, fault, jnp.dtype(dtype)
        self.start = nnx.Param(jnp.zeros((3, 4), dtype))
        self.scale = nnx.Param(jnp.ones(4, param_dtype))
        self.serial = object() if fault == "compilation" else None

    def initialize_carry(self, input_shape):
        if self.fault == "donation":
            return self.start.get_value()
        return jnp.zeros(input_shape, self.dtype)

    def __call__(self, carry, inputs, *, mask=None):
        carry = self.initialize_carry(inputs.shape[1:]) if carry is None else carry
        kind = carry.shape, carry.dtype
        if self.fault not in ("batch", "kind") and kind != (inputs.shape[1:], self.dtype):
            raise ValueError(f"carry must be {self.dtype} of shape {inputs.shape[1:]}, got {kind}.")
        if self.fault == "batch" and carry.dtype != self.dtype:
            raise ValueError(f"carry must be {self.dtype}.")
        if self.fault == "kind" and carry.shape != inputs.shape[1:]:
            raise ValueError(f"carry must be {inputs.shape[1:]}.")
        inputs = inputs.astype(self.dtype)
        if mask is not None and self.fault != "masking":
            inputs = jnp.where(mask[..., None], inputs, 1e-3 if self.fault == "padding" else 0)
        outputs = carry[None] + jnp.cumsum(inputs, 0)
        if self.fault == "devices":  # the first of the examples of a device
            outputs = outputs + inputs[:1, :1]
        if self.fault == "causality":
            outputs = outputs + inputs[-1:]
        if self.fault == "isolation":
            outputs = outputs + jnp.mean(inputs, 1, keepdims=True)
        if self.fault == "extremes":
            outputs = outputs / jnp.sqrt(jnp.sum(inputs * inputs, -1, keepdims=True))
        carry = outputs[-1]
        if self.fault == "division" and len(inputs) == 2:  # a call that ends in the middle of a chunk
            carry = 0.9 * carry
        outputs = outputs * self.scale.get_value().astype(self.dtype)[None, None]
        if self.fault == "dtypes":
            outputs = outputs.astype(jnp.float32)
        return carry, outputs if mask is None else jnp.where(mask[..., None], outputs, 0)

    def step(self, carry, inputs):
        carry = self.initialize_carry(inputs.shape) if carry is None else carry
        if self.fault == "steps":
            carry = 0.9 * carry
        carry, outputs = self(carry, inputs[None])
        return carry, outputs[0]


ON_LAYERS = {
    "donation": testing.check_layer_carry,
    "batch": testing.check_layer_carry,
    "kind": testing.check_layer_carry,
    "steps": testing.check_layer_steps,
    "division": testing.check_layer_steps,
    "masking": testing.check_layer_masking,
    "padding": testing.check_layer_masking,
    "causality": testing.check_layer_causality,
    "isolation": testing.check_layer_isolation,
    "extremes": testing.check_layer_extremes,
    "devices": testing.check_layer_devices,
}


@pytest.mark.parametrize("fault", ON_LAYERS)
def test_a_broken_layer_is_caught(fault, x64):
    check, dtypes = ON_LAYERS[fault], {"dtype": jnp.float64, "param_dtype": jnp.float64}
    check(Sums(**dtypes))
    with pytest.raises(AssertionError, match=f"^{check.__name__} failed. Checks that "):
        check(Sums(fault, **dtypes))


@pytest.mark.parametrize("check", [testing.check_layer_dtypes, testing.check_layer_compilation])
def test_a_layer_made_wrong_is_caught(check):
    fault = check.__name__.removeprefix("check_layer_")
    check(Sums)
    with pytest.raises(AssertionError, match=f"^{check.__name__} failed"):
        check(lambda **dtypes: Sums(fault, **dtypes))


def test_the_sum_is_a_layer():
    testing.check_layer(Sums)
    assert jax.tree.leaves(Sums())[0].shape == (4,)
