"""Tests that every storage of weights and pairs answers as dense weights in numpy do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import MNMCell, local_memory, unroll
from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._storage.factored import FactoredState, empty_pairs
from mnm_jax.memory._storage.products import minus_outer
from mnm_jax.memory._storage.transposed import TransposedState
from mnm_jax.memory._types import Pair

B, H, I, O, C = 3, 2, 5, 4, 4  # noqa: E741


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def written(writes):
    return [(Pair(normal(10 + t, B, H, I), normal(20 + t, B, H, O)),) for t in range(writes)]


def factored(shared=None, own=None, *, resets=False, was_reset=False):
    return FactoredState(
        shared,
        own,
        empty_pairs(((H, I, O),), B, C, jnp.float64),
        jnp.zeros((), jnp.int32),
        jnp.zeros(B, jnp.int32) if resets else None,
        jnp.zeros(B, bool) if was_reset else None,
    )


@functools.partial(jax.jit, static_argnames="fold")
def answers(storage, x, c, fold):
    return storage.product(0, x), storage.product_transposed(0, c), storage.fold()[0] if fold else ()


def assert_is(storage, weights, fold=True):
    """Checks that the storage answers as dense weights `[B, I, O]` do."""
    x, c = normal(1, B, 6, I), normal(2, B, 6, O)
    product, transposed, folded = answers(storage, x, c, fold)
    np.testing.assert_allclose(product, np.einsum("bhi,bio->bho", x, weights), atol=1e-12)
    np.testing.assert_allclose(transposed, np.einsum("bho,bio->bhi", c, weights), atol=1e-12)
    if fold:
        np.testing.assert_allclose(folded, weights, atol=1e-12)


def test_dense_and_transposed(x64):
    w = normal(0, B, I, O)
    dense = MemoryState((jnp.asarray(w),))
    for storage in (dense, TransposedState.of(dense)):
        assert_is(storage, w, fold=False)
        (pair,) = written(1)[0]
        after = w - np.einsum("bhi,bho->bio", *pair)
        assert_is(storage.subtract((pair,)), after, fold=False)
        assert storage.batch_size == B


@pytest.mark.parametrize("base", ["shared", "own", "none"])
def test_factored_is_the_sum_of_what_was_written(base, x64):
    w = normal(0, I, O) if base == "shared" else normal(0, B, I, O) if base == "own" else np.zeros((I, O))
    storage = factored(
        shared=(jnp.asarray(w),) if base == "shared" else None, own=(jnp.asarray(w),) if base == "own" else None
    )
    weights = [np.broadcast_to(w, (B, I, O))]
    subtract, pop = (jax.jit(getattr(FactoredState, name)) for name in ("subtract", "pop"))
    for pairs in written(C):
        storage = subtract(storage, pairs)
        weights.append(weights[-1] - np.einsum("bhi,bho->bio", *pairs[0]))
        assert_is(storage, weights[-1])
    for t in reversed(range(C)):
        storage, pairs = pop(storage, None, None)
        np.testing.assert_array_equal(pairs[0].delta, written(C)[t][0].delta)
        assert_is(storage, weights[t])


def test_factored_reset_forgets_what_an_example_wrote(x64):
    shared, own = normal(0, I, O), normal(1, B, I, O)
    flags = np.array([True, False, True])
    a, b = written(2)
    storage = factored((jnp.asarray(shared),), (jnp.asarray(own),), resets=True, was_reset=True)
    storage = storage.subtract(a).reset(flags).subtract(b)
    change = [np.einsum("bhi,bho->bio", *pairs[0]) for pairs in (a, b)]
    kept = own - change[0] - change[1]
    expected = np.where(flags[:, None, None], shared - change[1], kept)
    assert_is(storage, expected)
    total = -(change[0] + change[1]).sum(0)
    np.testing.assert_allclose(storage.sum_of_pairs()[0], total, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 12, 40])
def test_minus_outer_equals_the_product(rows, x64):
    w, x, d = normal(0, B, I, O), normal(1, B, rows, I), normal(2, B, rows, O)
    plain = lambda w, x, d: w - jnp.einsum("bhi,bho->bio", x, d)  # noqa: E731
    tangents = normal(3, B, I, O), normal(4, B, rows, I), normal(5, B, rows, O)

    @functools.partial(jax.jit, static_argnums=0)
    def differentiate(function, *given):
        square = lambda *given: jnp.sum(function(*given) ** 2)  # noqa: E731
        return jax.jvp(function, given, tangents), jax.grad(square, (0, 1, 2))(*given)

    found, expected = (differentiate(function, w, x, d) for function in (minus_outer, plain))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-11), found, expected)


@pytest.mark.parametrize(
    "form",
    [pytest.param("plain", marks=pytest.mark.slow), "reversible", pytest.param("factored", marks=pytest.mark.slow)],
)
def test_a_float32_memory_keeps_what_bfloat16_products_would_lose(form):
    """A thousand writes, each too small to change a bfloat16 weight, add up; its gradient is near that in float32."""

    def make(dtype):
        memory = local_memory(4, 4, hidden_sizes=(), param_dtype=jnp.float32)
        return MNMCell(3, 5, memory, param_dtype=dtype, rngs=nnx.Rngs(0))

    x = jax.random.normal(jax.random.key(0), (6, 2, 3))

    def loss(cell, x):
        carry, outputs = unroll(cell, None, x, form=form)
        return jnp.mean(outputs.features.astype(jnp.float32) ** 2), carry

    half = make(jnp.bfloat16)
    (_, carry), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(half, x.astype(jnp.bfloat16))
    assert carry.memory.weights[0].dtype == jnp.float32 and carry.controller[0].dtype == jnp.bfloat16
    whole = jax.tree.unflatten(
        jax.tree.structure(make(jnp.float32)), [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(half)]
    )
    expected = jax.jit(jax.grad(loss, has_aux=True))(whole, x)[0]
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.1 * max(np.abs(b).max(), 0.01))

    state = MemoryState((jnp.ones((1, 1, 1)),))
    small = (Pair(jnp.ones((1, 1, 1), jnp.bfloat16), jnp.full((1, 1, 1), 2.0**-12, jnp.bfloat16)),)
    state = jax.jit(lambda state: jax.lax.fori_loop(0, 1024, lambda _, state: state.subtract(small), state))(state)
    np.testing.assert_allclose(state.weights[0], 0.75)
