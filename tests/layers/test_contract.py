"""Tests the contracts of a layer on the forms of `NeuralMemoryLayer`. A new form is one line in LAYERS."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mnm_jax import NeuralMemoryLayer, WriteOptions, gradient_memory, local_memory, matrix_memory, testing

BOTH, FORGET = WriteOptions("l2", forget=True, momentum=True), WriteOptions("l2", forget=True)


def form(factory, *given, options=BOTH, layer=None, **settings):
    def make(dtype, param_dtype):
        memory = factory(3, 2, *given, options=options, param_dtype=param_dtype, **settings)
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        return NeuralMemoryLayer(4, memory, chunk=3, **(layer or {}), **dtypes, rngs=nnx.Rngs(0))

    return make


LAYERS = {
    "local": form(local_memory, hidden_sizes=(5,), layer={"heads": 2}),
    "gradient": form(gradient_memory, hidden_sizes=(5,), layer={"convolution": 2}),
    "local-deep": form(local_memory, hidden_sizes=(5, 4), use_bias=True, options=WriteOptions("layer")),
    "local-through": form(
        local_memory,
        hidden_sizes=(5,),
        write_through=True,
        pre_activation=True,
        layer={"heads": 2, "convolution": 2, "output_norm": True, "output_gate": True}
        | {"max_rate": 2.0, "hard_rate": True},
    ),
    "gradient-deep": form(gradient_memory, hidden_sizes=(5, 4), step_size="paper", use_bias=True, options=FORGET),
    "stale": form(gradient_memory, hidden_sizes=(5,), step_size="paper", layer={"stale": True}),
    "delta": form(matrix_memory, "delta", options=FORGET, layer={"heads": 2, "convolution": 3}),
    "hebbian": form(matrix_memory, "hebbian"),
}
named = functools.partial(pytest.mark.parametrize, "name")


def layers(*fast):
    """Runs a test with the layers of these names, and with all others among the slow tests."""
    return named([name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in LAYERS])


MADE = (testing.check_layer_dtypes, testing.check_layer_compilation)
SINGLE = (testing.check_layer_carry, testing.check_layer_extremes)
DOUBLE = (
    testing.check_layer_steps,
    testing.check_layer_masking,
    testing.check_layer_causality,
    testing.check_layer_isolation,
)


@pytest.mark.parametrize("check", [*MADE, *SINGLE], ids=lambda check: check.__name__)
@layers("local", "gradient")
def test_contracts(name, check):
    make = LAYERS[name]
    check(make if check in MADE else make(dtype=jnp.float32, param_dtype=jnp.float32))


# test_exact.py checks the local rule.
@pytest.mark.parametrize(
    "check",
    [pytest.param(check, marks=[pytest.mark.slow] * (check is testing.check_layer_steps)) for check in DOUBLE],
    ids=lambda check: check.__name__,
)
@layers("gradient")
def test_contracts_in_double_precision(name, check, x64):
    check(LAYERS[name](dtype=jnp.float64, param_dtype=jnp.float64))


@layers("delta")
def test_devices(name):
    with jax.enable_x64(True):
        testing.check_layer_devices(LAYERS[name](dtype=jnp.float64, param_dtype=jnp.float64))
