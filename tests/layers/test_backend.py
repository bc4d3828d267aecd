"""Tests which calls of the layer run in the kernel with `backend="auto"`."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax import export
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mnm_jax import WriteOptions, _accelerator, gradient_memory, local_memory, matrix_memory
from mnm_jax._accelerator import on_measured_gpu
from mnm_jax.layers import _heads
from mnm_jax.memory._kernels import chunks
from tests.layers.common import assert_close
from tests.layers.test_pallas import FORGET, by_layer, small_layer, value_and_grad


@pytest.fixture
def measured_gpu(monkeypatch):
    """Makes "auto" choose as on a GPU. The bounds of the measured sizes are smaller, so that a CPU can interpret."""
    monkeypatch.setattr(_heads, "on_measured_gpu", lambda x: 0 not in x.shape)
    monkeypatch.setattr(chunks, "_LEAST_STEPS", 20)
    monkeypatch.setattr(chunks, "_MOST_STEPS", 44)
    monkeypatch.setattr(chunks, "_SIZES", ((16, 16), (16, 16, 16)))


def uses_kernel(layer, inputs, **given):
    return "pallas_call" in str(jax.make_jaxpr(lambda x: layer(None, x, **given))(inputs))


def test_auto_takes_the_kernel_where_it_was_measured_to_win(measured_gpu):
    """The kernel uses chunks of 16 although `chunk` is 64; XLA computes the last 12 of 44 tokens."""
    memory = local_memory(16, 16, hidden_sizes=(16,), options=FORGET)
    auto, xla = (small_layer(backend, memory, chunk=64) for backend in ("auto", "xla"))
    inputs = jax.random.normal(jax.random.key(0), (44, 2, 4))
    assert uses_kernel(auto, inputs) and not uses_kernel(xla, inputs)
    found, expected = (jax.tree.leaves(value_and_grad(by_layer)(layer, inputs)) for layer in (auto, xla))
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


LARGER = jnp.ones((20, 33, 4))
ELSEWHERE = {
    "short": ({}, {"inputs": jnp.ones((19, 2, 4))}),
    "long": ({}, {"inputs": jnp.ones((45, 2, 4))}),
    "no examples": ({}, {"inputs": jnp.ones((20, 0, 4))}),
    "long chunks": ({"chunk": 128}, {}),
    "many memories": ({"heads": 2}, {"inputs": LARGER}),
    "other sizes": ({"memory": matrix_memory(32, 16)}, {}),
    "three layers": ({"memory": local_memory(16, 16, hidden_sizes=(16, 16))}, {}),
    "rule": ({"memory": gradient_memory(16, 16, hidden_sizes=(16,))}, {}),
    "momentum": ({"memory": matrix_memory(16, 16, options=WriteOptions(momentum=True))}, {}),
    "dtype": ({"dtype": jnp.bfloat16}, {}),
    "losses": ({}, {"return_loss": True}),
    "resets": ({}, {"reset": jnp.ones((20, 2), bool)}),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_auto_takes_xla_elsewhere(name, measured_gpu):
    settings, given = ELSEWHERE[name]
    layer = small_layer("auto", **({"memory": matrix_memory(16, 16)} | settings))
    assert uses_kernel(small_layer("auto", matrix_memory(16, 16)), jnp.ones((20, 2, 4)))
    assert not uses_kernel(layer, **({"inputs": jnp.ones((20, 2, 4))} | given))


DEVICE = {"platform": "gpu", "compute_capability": "9.0"}
X = jnp.ones(4)


def fake_devices(monkeypatch, platform="gpu", devices=(DEVICE,)):
    """Makes `on_measured_gpu` see other devices; JAX itself keeps its own."""
    seen = [types.SimpleNamespace(**device) for device in devices]
    fake = types.SimpleNamespace(config=jax.config, default_backend=lambda: platform, devices=lambda: seen)
    monkeypatch.setattr(_accelerator, "jax", fake)


@pytest.mark.parametrize(
    ("platform", "devices", "precision", "expected"),
    [
        ("gpu", [DEVICE], None, True),
        ("gpu", [DEVICE], "tensorfloat32", True),
        ("gpu", [DEVICE], "highest", False),
        ("gpu", [DEVICE, DEVICE], None, False),
        ("gpu", [DEVICE | {"compute_capability": "8.0"}], None, False),
        ("gpu", [{"platform": "gpu"}], None, False),
        ("tpu", [DEVICE], None, False),
    ],
)
def test_the_kernels_were_measured_on_one_hopper_gpu_in_tf32(platform, devices, precision, expected, monkeypatch):
    fake_devices(monkeypatch, platform, devices)
    with jax.default_matmul_precision(precision):
        assert on_measured_gpu(X) is expected


def test_auto_takes_xla_where_a_kernel_cannot_be_traced(monkeypatch):
    fake_devices(monkeypatch)
    results = []

    def look(x):
        results.append(on_measured_gpu(x))
        return x

    symbolic = jax.ShapeDtypeStruct(export.symbolic_shape("b, 4"), jnp.float32)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    jax.eval_shape(look, X)
    jax.eval_shape(look, symbolic)
    jax.eval_shape(look, jnp.ones((2, 0)))
    jax.eval_shape(jax.shard_map(look, mesh=mesh, in_specs=P("x"), out_specs=P("x")), X)
    with jax.default_device(jax.devices()[0]):
        jax.eval_shape(look, X)
    assert results == [True, False, False, False, False]
