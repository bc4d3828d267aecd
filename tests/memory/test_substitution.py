"""Tests forward substitution through an activation against a loop over tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnm_jax.memory._chunks.substitution import substitute


def by_loop(activation, below, known, targets):
    answers, errors = [], []
    for t in range(known.shape[1]):
        answers.append(known[:, t] - sum(below[:, t, s, None] * error for s, error in enumerate(errors)))
        errors.append(activation(answers[-1]) - targets[:, t])
    return jnp.stack(answers, 1)


def draw(tokens, features=3, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    below = jnp.tril(jax.random.normal(keys[0], (2, tokens, tokens)), -1) / tokens**0.5
    return below, *(jax.random.normal(key, (2, tokens, features)) for key in keys[1:])


@pytest.mark.parametrize("tokens", [1, 16, 19])  # within a block, a whole block, and more than one
def test_substitutes_what_a_loop_substitutes(tokens, x64):
    given = draw(tokens)
    weigh = lambda function: lambda *given: jnp.sum(jnp.sin(function(jnp.tanh, *given)))  # noqa: E731
    found, expected = (jax.jit(jax.value_and_grad(weigh(f), (1, 2)))(*given) for f in (substitute, by_loop))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12), found, expected)


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.softmax], ids=["elementwise", "of rows"])
def test_derivatives_of_both_kinds_and_orders(activation, x64):
    given, along = draw(4), draw(4, seed=1)

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(function):
        value = lambda given: jnp.sum(jnp.sin(function(activation, jnp.tril(given[0], -1), *given[1:])))  # noqa: E731
        slope = jax.grad(value)
        along_slope = lambda given: sum(map(jnp.vdot, slope(given), along))  # noqa: E731
        return jax.jvp(value, (given,), (along,)), jax.jvp(slope, (given,), (along,)), jax.grad(along_slope)(given)

    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12)  # noqa: E731
    jax.tree.map(close, derivatives(substitute), derivatives(by_loop))
