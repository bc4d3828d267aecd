"""The layer: chunks give what single tokens give, and both what the literature's recurrences give, written in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import gradient_memory, local_memory
from mnm_jax.layers import NeuralMemoryBlock
from mnm_jax.memory._chunks import chunk as chunked
from mnm_jax.memory._network import Network

D, K, V, B = 5, 4, 3, 2


def make_block(dtype=jnp.float32, **settings):
    """A block all of whose parameters are random."""
    block = NeuralMemoryBlock(D, key_size=K, value_size=V, dtype=dtype, rngs=nnx.Rngs(0), **settings)
    graphdef, params = nnx.split(block)
    keys = iter(jax.random.split(jax.random.key(1), 20))
    noisy = lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape, x.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(noisy, params))


def make_inputs(steps, dtype=jnp.float64):
    return jax.random.normal(jax.random.key(2), (steps, B, D), dtype)


@jax.jit
def run_by_steps(block, inputs, carry=None):
    carry = block.initialize_carry(B) if carry is None else carry
    return jax.lax.scan(lambda carry, x: block.step(carry, x), carry, inputs)


@jax.jit
def run_by_chunks(block, inputs, carry=None, mask=None):
    return block(inputs, carry, mask=mask)


def assert_close(a, b, rtol=1e-10, atol=1e-12):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


FORMS = [
    {"rule": rule, "step_size": size, "hidden_sizes": hidden, "forget": forget, "momentum": momentum, "heads": heads}
    for rule, size, hidden, forget, momentum, heads in [
        ("local", "normalised", (), True, True, 1),
        ("local", "normalised", (6,), True, True, 2),
        ("local", "sum", (6, 6), False, False, 1),
        ("local", "sum", (), True, False, 2),
        ("gradient", "normalised", (6,), True, True, 2),
        ("gradient", "normalised", (6, 6), False, True, 1),
        ("gradient", "sum", (), False, False, 2),
        ("gradient", "sum", (6,), True, False, 1),
    ]
]
FORMS.append(FORMS[1] | {"convolution": 3})


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_chunks_give_what_single_tokens_give(form, x64):
    block = make_block(jnp.float64, chunk=4, **form)
    inputs = make_inputs(11)  # two chunks and the beginning of a third
    expected = run_by_steps(block, inputs)
    assert_close(run_by_chunks(block, inputs), expected)
    assert float(jnp.std(expected[1])) > 0.05


@pytest.mark.parametrize("form", [FORMS[1], FORMS[-1]], ids=str)
@pytest.mark.parametrize("cut", [8, 6, 1], ids=["between two chunks", "within a chunk", "after one token"])
def test_tokens_one_by_one_go_on_where_a_sequence_was_left(cut, form, x64):
    block, inputs = make_block(jnp.float64, chunk=4, **form), make_inputs(11)
    carry, first = run_by_chunks(block, inputs[:cut])
    carry, second = run_by_steps(block, inputs[cut:], carry)
    assert_close((carry, jnp.concatenate([first, second])), run_by_chunks(block, inputs))


@pytest.mark.parametrize("form", [FORMS[1], FORMS[4], FORMS[-1]], ids=str)
def test_gradients_through_chunks_are_those_through_single_tokens(form, x64):
    block = make_block(jnp.float64, chunk=3, **form)
    inputs = make_inputs(7)

    def loss(run, block, inputs):
        carry, outputs = run(block, inputs)
        return jnp.sum(jnp.sin(outputs)) + sum(jnp.sum(jnp.cos(w)) for w in carry.fast.now)

    by_chunks = jax.grad(lambda *a: loss(run_by_chunks, *a), argnums=(0, 1))(block, inputs)
    by_steps = jax.grad(lambda *a: loss(run_by_steps, *a), argnums=(0, 1))(block, inputs)
    assert_close(by_chunks, by_steps, rtol=1e-9)
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(by_chunks))


def test_a_memory_of_one_layer_is_the_same_for_any_chunk(x64):
    inputs = make_inputs(12)
    blocks = [make_block(jnp.float64, chunk=chunk, forget=True, momentum=True) for chunk in (1, 5, 12, 64)]
    expected = run_by_chunks(blocks[0], inputs)
    for block in blocks[1:]:
        carry, outputs = run_by_chunks(block, inputs)
        assert_close((carry.fast.now, carry.fast.surprise), (expected[0].fast.now, expected[0].fast.surprise))
        assert_close(outputs, expected[1])


@pytest.mark.parametrize("make", [local_memory, gradient_memory])
def test_a_chunk_of_one_token_is_the_memory_as_four_functions(make, x64):
    memory = make(K, V, hidden_sizes=(6,), param_dtype=jnp.float64)
    params = memory.init(jax.random.key(0))
    rule = chunked.Rule(Network((K, 6, V), jnp.tanh, False), make is local_memory, True, 1e-3)
    keys, queries = jax.random.normal(jax.random.key(1), (2, 5, B, K))
    values, rates = jax.random.normal(jax.random.key(2), (5, B, V)), jax.random.uniform(jax.random.key(3), (5, B))
    state = memory.start(params, B)
    fast = chunked.Fast(state.weights, state.weights, jax.tree.map(jnp.zeros_like, state.weights))
    ones = jnp.ones((B, 1))

    @jax.jit
    def write_both(state, fast, k, v, q, r):
        gates = chunked.Gates(r[:, None], ones, 0 * ones, ones)
        tokens = chunked.Tokens(k[:, None], v[:, None], q[:, None], gates)
        state, _, expected = memory.write_read(params, state, k[:, None], v[:, None], r, q[:, None])
        return state, expected, *chunked.chunk(rule, params, fast, tokens, chunked.mix(rule, gates))

    for token in zip(keys, values, queries, rates, strict=True):
        state, expected, fast, found = write_both(state, fast, *token)
        assert_close(found, expected)
        assert_close(fast.now, state.weights)


def gates_of(block, inputs):
    """Keys, values, queries, rate, keep, momentum of one example, as numpy `[T, ...]`, from the parameters."""
    x = np.asarray(inputs)[:, 0]
    vectors = x @ np.asarray(block.to_vectors.kernel)
    gates = 1 / (1 + np.exp(-(x @ np.asarray(block.to_gates.kernel) + np.asarray(block.to_gates.bias))))
    keys, values, queries = np.split(vectors, [K, K + V], axis=-1)
    keys, queries = (part / np.linalg.norm(part, axis=-1, keepdims=True) for part in (keys, queries))
    return keys, values, queries, gates


def test_it_is_deltanet(x64):
    block = make_block(jnp.float64, chunk=4, rule="gradient", step_size="sum")
    inputs = make_inputs(9)
    keys, values, queries, gates = gates_of(block, inputs)
    weights, expected = np.array(block.memory_params.get_value().weights[0][0]), []
    for k, v, q, (beta,) in zip(keys, values, queries, gates, strict=True):
        weights = weights - beta * np.outer(k, k @ weights - v)
        expected.append(q @ weights @ np.asarray(block.to_output.kernel))
    assert_close(run_by_chunks(block, inputs)[1][:, 0], np.array(expected))


def test_it_is_gated_deltanet(x64):
    block = make_block(jnp.float64, chunk=4, rule="gradient", step_size="sum", forget=True)
    inputs = make_inputs(9)
    keys, values, queries, gates = gates_of(block, inputs)
    weights, expected = np.array(block.memory_params.get_value().weights[0][0]), []
    for k, v, q, (beta, alpha) in zip(keys, values, queries, gates, strict=True):
        weights = (1 - alpha) * weights - beta * np.outer(k, k @ weights - v)
        expected.append(q @ weights @ np.asarray(block.to_output.kernel))
    assert_close(run_by_chunks(block, inputs)[1][:, 0], np.array(expected))


def test_it_is_the_memory_of_titans(x64):
    """Two layers, gradients at the beginning of each chunk of three, equations 13 and 14, by autodiff."""
    block = make_block(
        jnp.float64, chunk=3, rule="gradient", hidden_sizes=(6,), step_size="sum", forget=True, momentum=True
    )
    inputs = make_inputs(8)
    keys, values, queries, gates = gates_of(block, inputs)
    now = start = [np.array(w[0]) for w in block.memory_params.get_value().weights]
    surprise, expected = [np.zeros_like(w) for w in now], []

    def answer(weights, x):
        return jnp.tanh(x @ weights[0]) @ weights[1]

    slope = jax.jit(jax.grad(lambda w, k, v: 0.5 * jnp.sum((answer(w, k) - v) ** 2)))
    for t, (k, v, q, (theta, alpha, eta)) in enumerate(zip(keys, values, queries, gates, strict=True)):
        start = now if t % 3 == 0 else start
        gradient = slope(start, k, v)
        surprise = [eta * s - theta * np.asarray(g) for s, g in zip(surprise, gradient, strict=True)]
        now = [(1 - alpha) * w + s for w, s in zip(now, surprise, strict=True)]
        expected.append(np.asarray(answer(now, q)) @ np.asarray(block.to_output.kernel))
    assert_close(run_by_chunks(block, inputs)[1][:, 0], np.array(expected))


def test_padding_changes_nothing_and_gets_no_gradient(x64):
    block = make_block(jnp.float64, chunk=4, hidden_sizes=(6,), forget=True, momentum=True)
    inputs, mask = make_inputs(10), jnp.ones((10, B), bool).at[7:, 0].set(False)
    carry, outputs = run_by_chunks(block, inputs, mask=mask)
    alone, short = run_by_chunks(block, inputs[:7])
    assert_close(outputs[:7, 0], short[:, 0])
    for padded, plain in zip(carry.fast.now + carry.fast.surprise, alone.fast.now + alone.fast.surprise, strict=True):
        assert_close(padded[:, 0], plain[:, 0])
    slope = jax.grad(lambda x: jnp.sum(run_by_chunks(block, x, mask=mask)[0].fast.now[0]))(inputs)
    assert np.all(slope[7:, 0] == 0) and np.all(np.abs(slope[7:, 1]).max(-1) > 0)


def test_inputs_of_zeros_have_finite_gradients():
    block = make_block(chunk=4, rule="gradient", hidden_sizes=(6,))
    gradient = jax.grad(lambda block: jnp.sum(run_by_chunks(block, jnp.zeros((6, B, D)))[1]))(block)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_an_example_does_not_see_the_others(x64):
    block, inputs = make_block(jnp.float64, chunk=4, heads=2), make_inputs(9)
    other = inputs.at[:, 1].set(7.0)
    assert_close(run_by_chunks(block, inputs)[1][:, 0], run_by_chunks(block, other)[1][:, 0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "hebb"}, "rule must be one of local, gradient, got 'hebb'"),
        ({"step_size": "paper"}, "step_size must be one of normalised, sum, got 'paper'"),
        ({"convolution": 0}, "convolution must be >= 1, got 0"),
        ({"chunk": 0}, "chunk must be >= 1, got 0"),
        ({"heads": -1}, "heads must be >= 1, got -1"),
        ({"hidden_sizes": (0,)}, "hidden_sizes\\[0\\] must be >= 1, got 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_block(**settings)
    with pytest.raises(ValueError, match=r"inputs must have shape \[T, B, D\] = \[T, B, 5\], got \(2, 5\)"):
        make_block()(jnp.zeros((2, 5)))
