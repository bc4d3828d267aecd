"""Tests the kernel of the layer's chunks: values and gradients in interpret mode, programs for GPUs and TPUs."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import export

from mnm_jax import NeuralMemoryLayer, WriteOptions, gradient_memory, local_memory, matrix_memory
from mnm_jax.memory._kernels import on_chip
from tests.layers.common import assert_close, make_inputs, make_layer, make_memory, write_token_by_token

FORGET = WriteOptions("l2", forget=True)


@pytest.mark.parametrize("in_loop", [True, False], ids=["loop", "grid"])
@pytest.mark.parametrize("reverse", [True, False], ids=["reverse", "forward"])
def test_the_kernel_is_a_scan_per_program(in_loop, reverse):
    def step(carry, x):
        (a, b), (y, z) = carry, x
        a, b = a + y @ z, 0.5 * b - z
        return (a, b), {"sum": a.sum(0, keepdims=True), "product": a @ y}

    carry = jnp.arange(8.0).reshape(2, 2, 2), jnp.ones((2, 1, 2))
    xs = jnp.arange(24.0).reshape(2, 3, 2, 2) / 9, jnp.arange(12.0).reshape(2, 3, 1, 2)
    xs = xs[0], jnp.concatenate([xs[1], -xs[1]], 2)
    carry = carry[0], jnp.concatenate([carry[1], 2 * carry[1]], 1)
    expected = jax.vmap(lambda carry, xs: jax.lax.scan(step, carry, xs, reverse=reverse))(carry, xs)
    call = functools.partial(on_chip._call, step, reverse=reverse, in_loop=in_loop, interpret=True)
    assert_close(jax.jit(call)(carry, xs), expected, rtol=1e-6, atol=1e-6)


def value_and_grad(run):
    def value(layer, inputs):
        weights, outputs = run(layer, inputs)
        return sum(jnp.sum(jnp.sin(x)) for x in (*weights, outputs)), outputs

    return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))


def by_layer(layer, inputs, mask=None):
    carry, outputs = layer(None, inputs, mask=mask)
    return carry.memory.now.weights, outputs


MEMORIES = {
    "local": ("local", FORGET, {"hidden_sizes": (6, 5)}),
    "delta": ("delta", WriteOptions("l2"), {}),
    "paper": ("local", WriteOptions(), {"hidden_sizes": (6,), "step_size": "paper", "activation": jax.nn.silu}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORIES)
def test_the_kernel_gives_the_memorys_own_writes_in_double_precision(name, x64):
    rule, options, settings = MEMORIES[name]
    layer = make_layer(make_memory(rule, options, **settings), heads=2, chunk=3)
    layer.backend = "pallas"  # which is refused for float64 and sizes that are no powers of 2; both can be interpreted

    def by_memory(layer, inputs):
        (weights, _), outputs, _ = write_token_by_token(layer, inputs)
        return weights, outputs

    found, expected = (jax.tree.leaves(value_and_grad(run)(layer, make_inputs(6))) for run in (by_layer, by_memory))
    assert_close(found, expected, rtol=1e-10, atol=1e-10)


def small_layer(backend, memory=None, **settings):
    memory = local_memory(16, 16, hidden_sizes=(32,), options=FORGET) if memory is None else memory
    given = {"chunk": 16, "backend": backend, "rngs": nnx.Rngs(0)} | settings
    return NeuralMemoryLayer(4, memory, **given)


def test_the_kernel_agrees_with_xla_over_chunks_a_rest_and_padding():
    inputs = jax.random.normal(jax.random.key(0), (33, 2, 4))
    inputs = inputs.at[5:9].set(inputs[4:5])  # a token repeated: keys that are equal
    mask = jnp.arange(33)[:, None] % jnp.array([[7, 50]]) != 3
    run = value_and_grad(functools.partial(by_layer, mask=mask))
    with jax.default_matmul_precision("highest"):  # a GPU or TPU would round the factors of products
        found, expected = (jax.tree.leaves(run(small_layer(backend), inputs)) for backend in ("pallas", "xla"))
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")  # JAX 0.11
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_value_and_gradient_are_lowered_for_accelerators(platform):
    triton = "__gpu$xla.gpu.triton"
    checks = [export.DisabledSafetyCheck.custom_call(triton)] if platform == "cuda" else []
    leaves, structure = jax.tree.flatten(small_layer("pallas"))

    def run(leaves, inputs):  # layers cannot be serialised
        return jax.tree.leaves(value_and_grad(by_layer)(jax.tree.unflatten(structure, leaves), inputs))

    given = leaves, jax.ShapeDtypeStruct((32, 2, 4), jnp.float32)
    exported = export.export(jax.jit(run), platforms=[platform], disabled_checks=checks)(*given)
    kernel = triton if platform == "cuda" else "tpu_custom_call"
    assert exported.mlir_module().count(f"@{kernel}(") == 2  # forward and backward
    assert exported.serialize()


REFUSED = {
    "rule": (
        {"memory": gradient_memory(16, 16, hidden_sizes=(16,))},
        "a memory with LocalRule or DeltaRule, got GradientR",
    ),
    "write-through": (
        {"memory": local_memory(16, 16, hidden_sizes=(16,), write_through=True)},
        "a memory with write_through=False, got write_through=True",
    ),
    "momentum": ({"memory": matrix_memory(16, 16, options=WriteOptions(momentum=True))}, "got momentum=True"),
    "bias": ({"memory": local_memory(16, 16, hidden_sizes=(), use_bias=True)}, "got use_bias=True"),
    "activation": ({"memory": local_memory(16, 16, hidden_sizes=(16,), activation=jnp.sin)}, "among tanh, relu"),
    "dtype": ({"dtype": jnp.bfloat16}, "dtype=float32, got bfloat16"),
    "param_dtype": ({"memory": matrix_memory(16, 16, param_dtype=jnp.bfloat16)}, "param_dtype=float32, got bfloat16"),
    "key_size": ({"memory": matrix_memory(24, 16)}, "key_size to be 16, 32, 64 or a higher power of 2, got 24"),
    "hidden": ({"memory": local_memory(16, 16, hidden_sizes=(16, 8))}, r"hidden_sizes\[1\] to be 16, .*got 8"),
    "chunk": ({"chunk": 4}, "chunk to be 16, 32 or 64, got 4: change this setting, or pass backend='auto'"),
    "long chunk": (
        {"memory": local_memory(64, 64, hidden_sizes=(64,)), "chunk": 64},
        "fit in 32 KiB with chunk=64, got 64 KiB",
    ),
    "memory": ({"memory": local_memory(128, 128, hidden_sizes=(128,))}, "fit in 128 KiB with chunk=16, got 256 KiB"),
    "backend": ({"backend": "triton"}, "backend must be one of 'auto', 'xla', 'pallas', got 'triton'"),
}


@pytest.mark.parametrize("given", [{"reset": jnp.ones((16, 2), bool)}, {"return_loss": True}], ids=str)
def test_what_a_call_of_the_kernel_cannot_do_is_refused_by_name(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} needs backend='xla', got 'pallas'"):
        small_layer("pallas")(None, jnp.ones((16, 2, 4)), **given)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_kernel_cannot_do_is_refused_by_name(name):
    settings, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        small_layer(**({"backend": "pallas"} | settings))


DERIVATIVES = {
    "twice in reverse": lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f)(x) ** 2)),
    "forward": lambda f: lambda x: jax.jvp(f, (x,), (x,))[1],
    "forward over reverse": lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (x,))[1],
}


@pytest.mark.parametrize("compiled", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_other_derivatives_of_the_kernel_are_refused_by_name(name, compiled):
    layer, inputs = small_layer("pallas", matrix_memory(16, 16)), jnp.ones((16, 1, 4))
    derivative = DERIVATIVES[name](lambda x: jnp.sum(layer(None, x)[1]))
    with pytest.raises(TypeError, match="backend='pallas'.* has no second derivatives .* pass backend='xla'"):
        (jax.jit(derivative) if compiled else derivative)(inputs)
