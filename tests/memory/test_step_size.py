"""Tests the normalised solve with keys of all lengths that are equal, nearly equal or opposite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnm_jax.memory import MemoryState, gradient_memory, local_memory
from mnm_jax.memory._pair_memory import PairMemory

K, V, DRAWS = 32, 4, 8
LENGTHS = (1e-3, 0.1, 1.0, 50.0, 200.0, 1e4)
KINDS = ("independent", "equal", "opposite", "10% apart")
B = DRAWS * len(LENGTHS) * len(KINDS) * 2
FACTORIES = {"local": local_memory, "gradient": gradient_memory}


def draw(heads: int, lengths=LENGTHS):
    """Returns keys and values `[kind, same, length, draw, H, ...]`; same: all heads write one value, with its sign."""
    rng = np.random.default_rng(heads)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    each, near = (unit(rng.normal(size=(DRAWS, heads, K))) for _ in range(2))
    sign = np.where(np.arange(heads) % 2, -1.0, 1.0)[:, None]
    first = each[:, :1]
    kinds = [each, np.repeat(first, heads, 1), first * sign, first + 0.1 * near]
    keys = np.stack(kinds)[:, None, None] * np.asarray(lengths)[:, None, None, None]
    keys = np.broadcast_to(keys, (len(kinds), 2, len(lengths), DRAWS, heads, K))
    values = rng.normal(size=(DRAWS, heads, V))
    same = np.repeat(values[:, :1], heads, 1)
    values = np.stack([[values, same * sign if kind == 2 else same] for kind in range(4)])[:, :, None]
    return keys, np.broadcast_to(values, (*keys.shape[:-1], V))


@functools.cache
def answers(rule: str, heads: int, dtype):
    """Returns the answers of a memory of zeros after one write at rate one, and the values written."""
    memory = FACTORIES[rule](K, V, hidden_sizes=(), initial_gain=0.0, param_dtype=dtype)
    params = memory.init(jax.random.key(0))
    keys, values = draw(heads)
    flat = [jnp.asarray(x.reshape(-1, *x.shape[-2:]), dtype) for x in (keys, values)]

    @jax.jit
    def run(keys, values):
        state, _ = memory.write(params, memory.start(params, B), keys, values, jnp.ones(B, dtype))
        return memory.read(params, state, keys)

    return tuple(np.asarray(x, np.float64).reshape(values.shape) for x in (run(*flat), flat[1]))


@pytest.mark.parametrize("rule", FACTORIES)
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_in_float32_a_write_stores_its_values_for_keys_of_any_length(rule, heads):
    read, values = answers(rule, heads, jnp.float32)
    size = np.sqrt(np.sum(values**2, axis=(-2, -1)))
    left = np.sqrt(np.sum((read - values) ** 2, axis=(-2, -1))) / size
    assert np.max(left[[0, 3]]) < 1e-3, "independent keys, and keys 10% apart"
    assert np.max(left[:, 1]) < 1e-3, "one value"


@pytest.mark.parametrize("rule", FACTORIES)
@pytest.mark.parametrize("heads", [2, 3, 4])
def test_in_float32_equal_keys_store_the_mean_of_their_values(rule, heads):
    read, values = answers(rule, heads, jnp.float32)
    sign = np.where(np.arange(heads) % 2, -1.0, 1.0)[:, None]
    for kind, signs in ((1, np.ones_like(sign)), (2, sign)):
        mean = signs * np.mean(signs * values[kind, 0], axis=-2, keepdims=True)
        size = np.sqrt(np.sum(values[kind, 0] ** 2, axis=(-2, -1)))
        assert np.max(np.sqrt(np.sum((read[kind, 0] - mean) ** 2, axis=(-2, -1))) / size) < 1e-3


@pytest.mark.parametrize("rule", FACTORIES)
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_in_bfloat16_no_write_makes_the_loss_worse(rule, heads):
    read, values = answers(rule, heads, jnp.bfloat16)
    before, after = np.sum(values**2, axis=(-2, -1)), np.sum((read - values) ** 2, axis=(-2, -1))
    assert np.all(after <= before * (1 + 2**-7))  # the mean of opposite values can be zero: then nothing can improve


@pytest.mark.parametrize("rule", FACTORIES)
def test_hidden_layers_solve_their_own_equations(rule):
    """In float32, the change of every layer's answers to its own inputs is that in float64.

    With longer keys the derivatives of tanh are zero in float32 and not in float64.
    """
    memory = FACTORIES[rule](K, V, hidden_sizes=(6,))
    assert isinstance(memory, PairMemory)
    params = memory.init(jax.random.key(0))
    heads = 2 if rule == "local" else 1
    keys, values = draw(heads, (0.1, 1.0, 3.0))
    keys, values = (jnp.asarray(x[:, 0].reshape(-1, *x.shape[-2:]), jnp.float32) for x in (keys, values))
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
    memory = FACTORIES[rule](K, V, hidden_sizes=hidden)
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

    keys, values = (jnp.asarray(x[0, 0, 2, :2], jnp.float32) for x in draw(2))
    for some in (jnp.zeros_like(keys), keys, jnp.repeat(keys[:, :1], 2, 1), 1e-6 * keys):
        for wanted in (jnp.zeros_like(values), memory.read(params, memory.start(params, 2), some)):
            assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient_of_gradient(params, some, wanted)))
