"""Tests the normalised solve with keys of all lengths that are equal, nearly equal or opposite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnm_jax.memory import MemoryState, _step_size, gradient_memory, local_memory
from mnm_jax.memory._pair_memory import PairMemory
from mnm_jax.testing._contract import assert_derivatives
from tests.compiled import compiled

K, V, DRAWS = 32, 4, 8
LENGTHS = (1e-3, 1.0, 50.0, 1e4)
DISTANCES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)  # between unit keys
KINDS = ("near", "opposite", "last two", "last in span")
FACTORIES = {"local": local_memory, "gradient": gradient_memory}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(heads: int, distances=DISTANCES, lengths=LENGTHS):
    """Returns keys and values `[kind, distance, length, draw, H, ...]`, and the sign of every head `[kind, 1, ...]`."""
    rng = np.random.default_rng(heads)
    each, near = (unit(rng.normal(size=(DRAWS, heads, K))) for _ in range(2))
    signs = np.ones((len(KINDS), 1, 1, 1, heads, 1))
    signs[1] = np.where(np.arange(heads) % 2, -1.0, 1.0)[:, None]
    kinds = [np.repeat(each[:, :1], heads, 1), np.repeat(each[:, :1], heads, 1) * signs[1, 0, 0], each.copy(), each]
    kinds[2][:, -1] = kinds[2][:, max(heads - 2, 0)]
    kinds[3][:, -1] = unit(kinds[3][:, : max(heads - 1, 1)].sum(1))
    moves = np.broadcast_to(near / np.sqrt(2), (len(KINDS), *near.shape)).copy()
    moves[2:, :, :-1] = 0
    moves[2:] *= np.sqrt(2)
    keys = unit(np.stack(kinds)[:, None] + np.asarray(distances)[:, None, None, None] * moves[:, None])[:, :, None]
    keys = keys * np.asarray(lengths)[:, None, None, None]
    values = rng.normal(size=(DRAWS, heads, V))
    return keys, np.broadcast_to(values, (*keys.shape[:-1], V)), signs


@functools.cache
def answers(rule: str, heads: int, dtype):
    """Returns the answers of a memory of zeros after one write at rate one, the values written, and signs."""
    memory = FACTORIES[rule](K, V, hidden_sizes=(), initial_gain=0.0, param_dtype=dtype)
    params = memory.init(jax.random.key(0))
    keys, values, signs = draw(heads)
    flat = [jnp.asarray(x.reshape(-1, *x.shape[-2:]), dtype) for x in (keys, values)]

    @jax.jit
    def run(keys, values):
        rate = jnp.ones(len(keys), dtype)
        state, _ = memory.write(params, memory.start(params, len(keys)), keys, values, rate)
        return memory.read(params, state, keys)

    return (*(np.asarray(x, np.float64).reshape(values.shape) for x in (run(*flat), flat[1])), signs)


def norm(x):
    return np.sqrt(np.sum(x**2, axis=(-2, -1)))


CASES = [("local", 1), ("gradient", 2), ("local", 2), ("local", 3), ("gradient", 4)]


@pytest.mark.parametrize(("rule", "heads"), CASES)
def test_in_float32_a_write_stores_the_values_of_keys_that_are_1_percent_apart(rule, heads):
    read, values, _ = answers(rule, heads, jnp.float32)
    left = norm(read - values) / norm(values)
    exact = left if heads == 1 else left[:, np.asarray(DISTANCES) >= 0.01]
    assert np.max(exact) < 1e-3
    assert np.max(left) < 1 + 1e-5, "never worse, for any distance"


@pytest.mark.parametrize(("rule", "heads"), CASES[1:])
def test_in_float32_equal_and_opposite_keys_store_the_mean_of_their_values(rule, heads):
    read, values, signs = answers(rule, heads, jnp.float32)
    mean = signs * np.mean(signs * values, axis=-2, keepdims=True)
    off = (norm(read - mean) / norm(values))[:2]
    assert np.max(off[:, 0]) < 1e-5
    assert np.max(off[:, np.asarray(DISTANCES) <= 1e-4]) < 1e-2
    last = np.mean(values[2, 0, ..., -2:, :], -2, keepdims=True)  # two of several heads
    assert np.max(np.abs(read[2, 0, ..., -2:, :] - last)) < 1e-5 * np.max(norm(values))


@pytest.mark.parametrize(("rule", "heads"), CASES)
def test_in_bfloat16_no_write_makes_the_loss_worse(rule, heads):
    read, values, _ = answers(rule, heads, jnp.bfloat16)
    assert np.all(norm(read - values) <= norm(values) * (1 + 2**-8))  # opposite values can have a mean of zero


@functools.partial(jax.jit, static_argnums=1)
@jax.value_and_grad
def differentiate_write(keys, epsilon):
    """Returns a scalar of the weights after a write, and its gradient with respect to the keys."""
    memory = local_memory(3, 2, hidden_sizes=(4,), epsilon=epsilon)
    params = memory.init(jax.random.key(0))
    state, _ = memory.write(params, memory.start(params, 1), keys, jnp.ones((1, 2, 2)), jnp.ones(1))
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(state.weights))


@pytest.mark.parametrize("epsilon", [1e-22, 1e-30, 1e-300])
def test_a_tiny_epsilon_gives_finite_numbers_and_derivatives(epsilon):
    """1e-30 to the power -1.5 exceeds single precision, and 1e-300 to that power double precision."""

    keys = np.array([[[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]], np.float32)
    found, expected = (differentiate_write(keys, value) for value in (epsilon, 0.0))
    assert np.isfinite(found[1]).all()
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1][0, 0], expected[1][0, 0], rtol=1e-5)


@pytest.mark.parametrize("heads", [2, 3])
def test_the_write_is_the_spectral_filter_of_the_keys_and_its_derivatives_are_right(heads, monkeypatch, x64):
    """With a ridge so large that float64 resolves every key: near keys, and one short key, whose write fades out."""
    ridge, epsilon = 1e-3, 0.5
    monkeypatch.setattr(_step_size, "ridge_of", lambda dtype: ridge)
    keys = np.stack([k[0, 0, 0, 0] for k in (draw(heads, (0.04,), (1.0,))[0], draw(heads, (1.0,), (1.0,))[0])])
    keys[1, 0] *= 0.5
    error = np.cos(np.arange(2.0 * heads * V)).reshape(2, heads, V)

    @jax.jit
    def change(x, error):
        ((y, delta),) = _step_size.normalised_pairs([x], [error], epsilon)
        return jnp.einsum("bhi,bho->bio", y, delta)

    for x, e, found in zip(keys, error, change(keys, error), strict=True):
        square = np.sum(x * x, -1, keepdims=True)
        scale = np.where(square > epsilon, square**-0.5, square * epsilon**-1.5)
        correlations = scale * (x @ x.T) * scale.T
        np.fill_diagonal(correlations, 1)
        c, q = np.linalg.eigh(correlations)
        n = ridge / (c + ridge)
        np.testing.assert_allclose(found, (scale * x).T @ (q * (1 - n * n * (3 - 2 * n)) / c) @ q.T @ (scale * e))

    assert_derivatives(lambda given: jnp.sum(jnp.sin(change(*given))), (keys[:, :, :3], error[:, :, :2]))


@pytest.mark.parametrize("rule", FACTORIES)
def test_hidden_layers_solve_their_own_equations(rule):
    """In float32, the change of every layer's answers to its own inputs is that in float64.

    With longer keys the derivatives of tanh are zero in float32 and not in float64.
    """
    memory = FACTORIES[rule](K, V, hidden_sizes=(6,))
    assert isinstance(memory, PairMemory)
    params = memory.init(jax.random.key(0))
    heads = 2 if rule == "local" else 1
    keys, values, _ = draw(heads, (0.0, 0.1, 1.0), (0.1, 1.0, 3.0))
    keys, values = (jnp.asarray(x.reshape(-1, *x.shape[-2:]), jnp.float32) for x in (keys, values))
    size = len(keys)

    def write(params, keys, values):
        weights = MemoryState(memory.start(params, size).weights)
        pairs, answers = memory.rule.pairs(memory.network, params.targets, weights, keys, values)
        return pairs, answers, [weights.product(layer, pair.inputs) for layer, pair in enumerate(pairs)]

    single = jax.jit(write)(params, keys, values)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), (params, keys, values))
        double = jax.jit(write)(*wide)
    for (x, delta), (wide_x, wide_delta), answer in zip(single[0], double[0], double[2], strict=True):
        change = np.einsum("bhi,bgi,bgo->bho", *(np.asarray(a, np.float64) for a in (x, x, delta)))
        expected = np.einsum("bhi,bgi,bgo->bho", wide_x, wide_x, wide_delta)
        scale = np.sqrt(np.sum(expected**2, (1, 2))) + 1e-3 * np.sqrt(np.sum(np.square(answer), (1, 2)))
        assert np.max(np.sqrt(np.sum((change - expected) ** 2, (1, 2))) / scale) < 2e-3


@pytest.mark.parametrize("rule", FACTORIES)
@pytest.mark.parametrize("hidden", [(), (3,)])
def test_zero_keys_and_zero_errors_have_finite_derivatives_of_second_order(rule, hidden):
    memory = compiled(FACTORIES[rule](K, V, hidden_sizes=hidden))
    params = memory.init(jax.random.key(0))

    @jax.jit
    def gradient_of_gradient(params, keys, values):
        def loss(given):
            params, keys, values = given
            state, info = memory.write(params, memory.start(params, 2), keys, values, jnp.ones(2))
            return jnp.sum(memory.read(params, state, keys + 1) ** 2) + jnp.sum(info.loss_after + info.update_norm)

        def square(given):
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jax.grad(loss)(given)))

        return jax.grad(square)((params, keys, values))

    keys, values = (x[0, 0, 1, :2].astype(np.float32) for x in draw(2)[:2])
    for some in (np.zeros_like(keys), keys, np.repeat(keys[:, :1], 2, 1), np.float32(1e-6) * keys):
        for wanted in (np.zeros_like(values), memory.read(params, memory.start(params, 2), some)):
            assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient_of_gradient(params, some, wanted)))
