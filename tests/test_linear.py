"""Tests the product of a linear map over a sequence: its derivatives, and the program of the kernel's gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax._linear import dot_general

T, B, I, O = 3, 2, 4, 5  # noqa: E741
LAST = (((2,), (0,)), ((), ()))


def programs(product):
    """Returns a function: value and gradients of a loss, and their derivatives along a direction in forward mode."""

    def loss(x, kernel):
        return jnp.sum(jnp.sin(product(jnp.sin(x), kernel, LAST)))

    gradient = jax.value_and_grad(loss, (0, 1))

    @jax.jit
    def run(at, along):
        by_kernel = jax.jvp(lambda kernel: gradient(at[0], kernel), at[1:], along[1:])
        return jax.jvp(lambda given: gradient(*given), (at,), (along,)), by_kernel, jax.grad(loss)(*at)

    return run


@pytest.mark.usefixtures("x64")
def test_derivatives_of_two_orders_equal_those_of_a_product():
    draw = functools.partial(jax.random.normal, dtype=jnp.float64)
    keys = jax.random.split(jax.random.key(0), 4)
    at, along = ((draw(a, (T, B, I)), draw(b, (I, O))) for a, b in (keys[:2], keys[2:]))
    found, expected = (programs(product)(at, along) for product in (dot_general, jax.lax.dot_general))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-13, atol=1e-13), found, expected)


def test_the_kernels_gradient_sums_over_one_axis():
    linear = nnx.Linear(I, O, use_bias=False, dot_general=dot_general, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(linear)
    gradient = jax.grad(lambda params, x: jnp.sum(nnx.merge(graphdef, params)(x) ** 2))
    program = jax.jit(gradient).lower(params, jnp.ones((T, B, I))).as_text()
    assert program.count("contracting_dims = [0] x [0]") == 1  # of the kernel
    assert program.count("contracting_dims = [0, 1]") == 0


def test_a_divided_batch_is_not_joined_with_the_steps():
    """The axes of a batch that is divided explicitly cannot be joined."""
    mesh = jax.make_mesh((2,), ("b",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((T, B, I)), jax.P(None, "b"))
        gradient = jax.jit(jax.grad(lambda kernel: jnp.sum(dot_general(x, kernel, LAST))))(jnp.ones((I, O)))
    np.testing.assert_allclose(gradient, T * B)
