"""Tests the memory's write rules against autodiff, numpy loops and numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnm_jax.memory import gradient_memory, local_memory
from mnm_jax.memory._options import normalise
from mnm_jax.memory._step_size import solve
from mnm_jax.testing._contract import assert_derivatives
from tests.compiled import compiled

B, K, V = 3, 5, 4
FACTORIES = {"mnm-g": gradient_memory, "mnm-p": local_memory}
STEPS = ("normalised", "sum", "paper")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def build(rule, heads=2, hidden=(6, 7), **options):
    memory = compiled(FACTORIES[rule](K, V, hidden_sizes=hidden, param_dtype=jnp.float64, **options))
    params = memory.init(jax.random.key(0))
    return memory, params, memory.start(params, B), normal(1, B, heads, K), normal(2, B, heads, V)


@pytest.mark.parametrize("rule", FACTORIES)
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_normalised_write_to_a_linear_memory_is_one_shot(rule, heads, rate, x64):
    memory, params, state, keys, values = build(rule, heads, (), epsilon=0.0)
    keys = keys[:, :1] + 0.3 * keys  # keys of different heads overlap
    before = memory.read(params, state, keys) - values
    state, _ = memory.write(params, state, keys, values, np.full(B, rate))
    np.testing.assert_allclose(memory.read(params, state, keys) - values, (1 - rate) * before, atol=1e-9)


def dense_answer(weights, keys, use_bias):
    z = keys
    for layer, w in enumerate(weights):
        x = jnp.concatenate([z, jnp.ones((len(z), 1), z.dtype)], -1) if use_bias else z
        z = x @ w
        z = jnp.tanh(z) if layer < len(weights) - 1 else z
    return z


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize(("step_size", "heads"), [("paper", 3), ("sum", 3), ("normalised", 1)])
def test_gradient_rule_is_the_gradient_of_the_dense_weights(step_size, heads, use_bias, x64):
    memory, params, state, keys, values = build("mnm-g", heads, step_size=step_size, use_bias=use_bias, epsilon=0.0)
    rate = np.array([0.2, 0.5, 0.9])
    written, _ = memory.write(params, state, keys, values, rate)
    square = lambda w, keys, values: jnp.sum((dense_answer(w, keys, use_bias) - values) ** 2)  # noqa: E731
    differentiate = jax.jit(jax.value_and_grad(square))
    for b in range(B):
        value, gradient = jax.device_get(differentiate(params.weights, keys[b], values[b]))
        scale = {
            "paper": 1 / (heads * V),
            "sum": 1.0,
            "normalised": 2 * value / sum(np.sum(g**2) for g in gradient),
        }[step_size]
        for new, old, g in zip(written.weights, params.weights, gradient, strict=True):
            np.testing.assert_allclose(np.asarray(new)[b], old - rate[b] * scale * g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("heads", [2, 3])
def test_the_normalised_gradient_step_of_several_heads_is_that_of_the_docstring(heads, x64):
    """The eigenvalues of the errors' kernel are inverted one by one, with a share of 0.05 that is not corrected."""
    memory, params, state, keys, values = build("mnm-g", heads, (6,), epsilon=0.0)
    written, _ = memory.write(params, state, keys, values, np.ones(B))
    first, last = map(np.asarray, params.weights)
    for b in range(B):
        x, a = keys[b], np.tanh(keys[b] @ first)
        error, back = a @ last - values[b], lambda c: (c @ last.T) * (1 - a**2)  # noqa: B023
        kernel = np.sum(back(error) ** 2) / np.sum(error**2) * (x @ x.T) + a @ a.T
        scale = np.diag(kernel)[:, None] ** -0.5
        eigenvalues, vectors = np.linalg.eigh(scale * kernel * scale.T)
        n = 0.05 / (eigenvalues + 0.05)
        delta = scale * ((vectors * (1 - n * n * (3 - 2 * n)) / eigenvalues) @ vectors.T @ (scale * error))
        changes = x.T @ back(delta), a.T @ delta
        for new, old, change in zip(written.weights, (first, last), changes, strict=True):
            np.testing.assert_allclose(np.asarray(new)[b], old - change, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("condition_on_key", [False, True])
@pytest.mark.parametrize("step_size", STEPS)
def test_local_rule_equals_numpy_loops_over_heads(step_size, condition_on_key, x64):
    heads = 3
    memory, params, state, keys, values = build("mnm-p", heads, step_size=step_size, condition_on_key=condition_on_key)
    rate = np.array([0.2, 0.5, 0.9])
    written, _ = memory.write(params, state, keys, values, rate)
    params, weights = jax.device_get((params, written.weights))
    for b in range(B):
        x = keys[b]
        context = np.concatenate([values[b], keys[b]], -1) if condition_on_key else values[b]
        targets = context @ params.targets.kernel + params.targets.bias
        targets = np.split(targets, [6, 13], axis=-1)
        for layer, (w, t) in enumerate(zip(params.weights, targets, strict=True)):
            z = x @ w
            z = np.tanh(z) if layer < 2 else z
            delta = {
                "paper": 2 / (heads * z.shape[1]) * (z - t),
                "sum": 2 * (z - t),
                "normalised": np.linalg.solve(x @ x.T, z - t),
            }[step_size]
            change = sum(np.outer(x[h], delta[h]) for h in range(heads))
            np.testing.assert_allclose(weights[layer][b], w - rate[b] * change, rtol=1e-9, atol=1e-12)
            x = z


@pytest.mark.parametrize("rule", FACTORIES)
@pytest.mark.parametrize("step_size", STEPS)
def test_order_of_heads_is_immaterial(rule, step_size, x64):
    memory, params, state, keys, values = build(rule, 3, step_size=step_size)
    order = np.array([2, 0, 1])
    a, _ = memory.write(params, state, keys, values, np.ones(B))
    b, _ = memory.write(params, state, keys[:, order], values[:, order], np.ones(B))
    for u, v in zip(a.weights, b.weights, strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rule", FACTORIES)
def test_rate_zero_leaves_the_memory_bit_equal(rule, x64):
    memory, params, state, keys, values = build(rule)
    written, info = memory.write(params, state, keys, values, np.zeros(B))
    for u, v in zip(written.weights, state.weights, strict=True):
        np.testing.assert_array_equal(u, v)
    np.testing.assert_array_equal(info.update_norm, np.zeros(B))


@pytest.mark.parametrize("rule", FACTORIES)
def test_two_heads_with_one_key_write_the_mean_of_their_values(rule, x64):
    memory, params, state, keys, values = build(rule, 2, ())
    keys = np.broadcast_to(keys[:, :1], keys.shape)
    mean = np.broadcast_to(values.mean(1, keepdims=True), values.shape)
    state, _ = memory.write(params, state, keys, values, np.ones(B))
    np.testing.assert_allclose(memory.read(params, state, keys), mean, rtol=1e-6)


@pytest.mark.parametrize("rule", ["mnm-p", pytest.param("mnm-g", marks=pytest.mark.slow)])
@pytest.mark.parametrize("step_size", STEPS)
def test_zero_keys_give_finite_gradients_in_float32(rule, step_size):
    memory = compiled(FACTORIES[rule](K, V, hidden_sizes=(6,), step_size=step_size))
    params = memory.init(jax.random.key(0))

    def loss(params, keys, values):
        state, info = memory.write(params, memory.start(params, B), keys, values, jnp.ones(B))
        return jnp.sum(memory.read(params, state, keys) ** 2) + jnp.sum(info.update_norm)

    keys, values = (np.zeros((B, 2, size), np.float32) for size in (K, V))
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(params, keys, values)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("rule", ["mnm-p", pytest.param("mnm-g", marks=pytest.mark.slow)])
@pytest.mark.parametrize("learned", [True, False])
def test_a_fixed_initial_memory_gets_exactly_no_gradient(rule, learned, x64):
    memory, params, _, keys, values = build(rule, learn_initial=learned)

    def loss(params):
        state, _ = memory.write(params, memory.start(params, B), keys, values, jnp.full(B, 0.5))
        return jnp.sum(memory.read(params, state, keys) ** 2)

    assert any(np.any(g != 0) for g in jax.jit(jax.grad(loss))(params).weights) == learned


def test_write_info_by_hand():
    """f(k) = w k with w = 2, key 1, value 5: the whole step is 5 - 2 = 3, and rate 1/2 takes half of it."""
    memory = compiled(gradient_memory(1, 1, hidden_sizes=(), epsilon=0.0))
    params = memory.init(jax.random.key(0))._replace(weights=(jnp.array([[2.0]]),))
    one = jnp.ones((1, 1, 1))
    state, info = memory.write(params, memory.start(params, 1), one, 5 * one, jnp.array([0.5]))
    assert float(state.weights[0][0, 0, 0]) == 3.5
    assert [float(x[0]) for x in info] == [9.0, 2.25, 1.5]


@pytest.mark.parametrize("rule", ["mnm-g", pytest.param("mnm-p", marks=pytest.mark.slow)])
def test_second_order_gradients_agree_with_finite_differences(rule, x64):
    memory, params, _, keys, values = build(rule, 2, (3,))

    def loss(params, keys, values):
        state, info = memory.write(params, memory.start(params, B), keys, values, jnp.full(B, 0.5))
        return jnp.sum(memory.read(params, state, keys[:, ::-1]) ** 2) + jnp.sum(info.loss_after)

    assert_derivatives(lambda given: loss(*given), (params, keys, values))


def test_solve_equals_numpy(x64):
    x, right = normal(3, B, 4, 6), normal(4, B, 4, 5)
    matrix = np.einsum("bhi,bgi->bhg", x, x)
    found = jax.jit(solve, static_argnums=(2, 3))(matrix, right, 0.1, 1e-12)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-9)


@pytest.mark.parametrize("factory", FACTORIES.values())
def test_errors_name_the_value(factory):
    with pytest.raises(ValueError, match="key_size must be >= 1, got 0"):
        factory(0, 4, hidden_sizes=())
    with pytest.raises(ValueError, match="step_size must be one of 'normalised', 'sum', 'paper', got 'huge'"):
        factory(4, 4, hidden_sizes=(), step_size="huge")
    with pytest.raises(ValueError, match="epsilon must be >= 0, got -1"):
        factory(4, 4, hidden_sizes=(), epsilon=-1)
    memory = factory(4, 4, hidden_sizes=())
    params = memory.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"keys must have shape \[B, H, K\] = \[2, H, 4\], got \(2, 1, 3\)"):
        memory.read(params, memory.start(params, 2), jnp.ones((2, 1, 3)))


@pytest.mark.parametrize("how", ["l2", "layer"])
def test_short_keys_have_finite_derivatives(how):
    """The inverse root of the square of a key of 1e-13 is finite, and its derivative is not."""

    @jax.jit
    @jax.vmap
    def derivative(size):
        keys = size * jnp.asarray(normal(0, K), jnp.float32)
        return normalise(keys, how), jax.jacobian(lambda keys: normalise(keys, how))(keys)

    keys, slopes = derivative(jnp.asarray(10.0 ** -np.arange(0, 46, 3), jnp.float32))
    assert np.all(np.isfinite(keys)) and np.all(np.isfinite(slopes))
    np.testing.assert_allclose(keys[:4], np.broadcast_to(keys[:1], (4, K)), rtol=1e-5)
    np.testing.assert_array_equal(keys[5:], 0)
