"""Tests the layer against the memory's own writes, chunks against single tokens, and published recurrences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnm_jax import NeuralMemoryLayer, WriteOptions, custom_memory, gradient_memory, local_memory, matrix_memory
from mnm_jax.memory import Pair, rule_memory

D, K, V, B = 5, 4, 3, 2


def make_memory(name, options=None, dtype=jnp.float64, **settings):
    options = WriteOptions() if options is None else options
    if name in ("delta", "hebbian"):
        return matrix_memory(K, V, name, options=options, learn_initial=True, param_dtype=dtype, **settings)
    factory = {"local": local_memory, "gradient": gradient_memory}[name]
    return factory(K, V, options=options, param_dtype=dtype, **({"hidden_sizes": ()} | settings))


def make_layer(memory, param_dtype=jnp.float64, features=D, **settings):
    """Returns a layer with all parameters random."""
    layer = NeuralMemoryLayer(features, memory, param_dtype=param_dtype, rngs=nnx.Rngs(0), **settings)
    graphdef, params = nnx.split(layer)
    keys = iter(jax.random.split(jax.random.key(1), 20))
    noisy = lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape, x.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(noisy, params))


def make_inputs(steps, dtype=jnp.float64):
    return jax.random.normal(jax.random.key(2), (steps, B, D), dtype)


@jax.jit
def run_by_steps(layer, inputs, carry=None):
    carry = layer.initialize_carry(inputs.shape[1:]) if carry is None else carry
    return jax.lax.scan(lambda carry, x: layer.step(carry, x), carry, inputs)


@jax.jit
def run_by_chunks(layer, inputs, carry=None, mask=None):
    return layer(carry, inputs, mask=mask)


def assert_close(a, b, rtol=1e-10, atol=1e-12):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def tokens_of(layer, inputs):
    """Returns keys, values, queries `[T, B, H, .]` and gates `[T, B, H, 1 + gates]`, computed by numpy."""
    heads = lambda x: x.reshape(*x.shape[:2], layer.heads, -1)  # noqa: E731
    x = np.asarray(inputs)
    logits = x @ np.asarray(layer.to_gates.kernel) + np.asarray(layer.to_gates.bias)
    vectors = heads(x @ np.asarray(layer.to_vectors.kernel))
    return *np.split(vectors, [K, K + V], axis=-1), heads(1 / (1 + np.exp(-logits)))


def write_token_by_token(layer, inputs):
    """Runs the layer by `memory.write_read`; returns the last weights and surprise of each head, and the outputs."""
    memory, (keys, values, queries, gates) = layer.memory, tokens_of(layer, inputs)
    answers, states = [], []
    for head in range(layer.heads):
        params = jax.tree.map(lambda leaf: leaf[head], layer.memory_params.get_value())  # noqa: B023

        def step(state, token, params=params):
            k, v, q, g = token
            named = {name: g[:, 1 + place] for place, name in enumerate(memory.gates)}
            state, _, read = memory.write_read(params, state, k[:, None], v[:, None], g[:, 0], q[:, None], **named)
            return state, read[:, 0]

        tokens = tuple(jnp.asarray(part[:, :, head]) for part in (keys, values, queries, gates))
        state, read = jax.jit(lambda step, start, tokens: jax.lax.scan(step, start, tokens), static_argnums=0)(
            step, memory.start(params, B), tokens
        )
        answers.append(read)
        states.append(state)
    return states, jnp.concatenate(answers, -1) @ layer.to_output.kernel.get_value()


RULES = {
    "local": {"hidden_sizes": (6,)},
    "local-bias": {"hidden_sizes": (6,), "use_bias": True, "condition_on_key": True},
    "local-linear": {},
    "gradient": {"hidden_sizes": (6, 6)},
    "gradient-bias": {"hidden_sizes": (6,), "use_bias": True, "activation": jnp.sin},
    "gradient-linear": {},
}
PLAIN, ALL = WriteOptions(), WriteOptions("layer", forget=True, momentum=True)
CASES = [
    *((rule, size, how) for rule in RULES for size in ("normalised", "sum", "paper") for how in (PLAIN, ALL)),
    *((rule, None, how) for rule in ("delta", "hebbian") for how in (PLAIN, ALL)),
    *(("local", "normalised", WriteOptions("l2", forget=f, momentum=not f)) for f in (False, True)),
    *(("gradient", "sum", WriteOptions("l2", forget=f, momentum=not f)) for f in (False, True)),
]


@pytest.mark.parametrize(
    ("name", "step_size", "options"),
    CASES,
    ids=lambda x: "-".join(map(str, x[:1] + x[4:])) if isinstance(x, WriteOptions) else x,
)
def test_a_chunk_of_one_token_is_the_memorys_own_write(name, step_size, options, x64):
    settings = RULES.get(name, {}) | ({} if step_size is None else {"step_size": step_size})
    layer = make_layer(make_memory(name.split("-")[0], options, **settings), heads=2, chunk=1)
    inputs = 0.5 * make_inputs(4)
    states, expected = write_token_by_token(layer, inputs)
    carry, outputs = run_by_chunks(layer, inputs)
    assert_close(outputs, expected)
    for head, state in enumerate(states):
        assert_close(tuple(w[:, head] for w in carry.memory.now), tuple(state.weights))
        if options.momentum:
            assert_close(tuple(s[:, head] for s in carry.memory.surprise), tuple(state.surprise))


TWO_LAYERS, BOTH = {"hidden_sizes": (6,)}, WriteOptions("l2", forget=True, momentum=True)
FORMS = {
    "local-linear": (make_memory, ("local", BOTH), {}, {}),
    "local": (make_memory, ("local", BOTH), TWO_LAYERS, {"heads": 2}),
    "local-deep": (make_memory, ("local", WriteOptions("l2")), {"hidden_sizes": (6, 6), "step_size": "paper"}, {}),
    "delta": (make_memory, ("delta", WriteOptions("l2", forget=True)), {}, {"heads": 2}),
    "hebbian": (make_memory, ("hebbian", WriteOptions(momentum=True)), {}, {}),
    "gradient": (make_memory, ("gradient", BOTH), TWO_LAYERS, {"heads": 2}),
    "gradient-sum": (make_memory, ("gradient", WriteOptions("l2", forget=True)), TWO_LAYERS | {"step_size": "sum"}, {}),
    "convolution": (make_memory, ("local", BOTH), TWO_LAYERS, {"heads": 2, "convolution": 3}),
}


def make_form(name, chunk=4):
    make, given, settings, of_layer = FORMS[name]
    return make_layer(make(*given, **settings), chunk=chunk, **of_layer)


@pytest.mark.parametrize("name", FORMS)
def test_chunks_give_what_single_tokens_give(name, x64):
    layer, inputs = make_form(name), make_inputs(11)  # two chunks and the beginning of a third
    expected = run_by_steps(layer, inputs)
    assert_close(run_by_chunks(layer, inputs), expected)
    assert float(jnp.std(expected[1])) > 0.05


@pytest.mark.parametrize("name", ["local", "convolution"])
@pytest.mark.parametrize("cut", [8, 6, 1], ids=["between two chunks", "within a chunk", "after one token"])
def test_tokens_one_by_one_continue_where_a_sequence_was_left(cut, name, x64):
    layer, inputs = make_form(name), make_inputs(11)
    carry, first = run_by_chunks(layer, inputs[:cut])
    carry, second = run_by_steps(layer, inputs[cut:], carry)
    assert_close((carry, jnp.concatenate([first, second])), run_by_chunks(layer, inputs))


def test_a_sequence_continues_in_a_second_call(x64):
    layer, inputs = make_form("convolution"), make_inputs(11)
    carry, first = run_by_chunks(layer, inputs[:4])
    carry, second = run_by_chunks(layer, inputs[4:], carry)
    assert_close((carry, jnp.concatenate([first, second])), run_by_chunks(layer, inputs))


@pytest.mark.parametrize("name", ["local", "gradient", "convolution"])
def test_gradients_through_chunks_are_those_through_single_tokens(name, x64):
    layer, inputs = make_form(name, chunk=3), make_inputs(7)

    def loss(run, layer, inputs):
        carry, outputs = run(layer, inputs)
        return jnp.sum(jnp.sin(outputs)) + sum(jnp.sum(jnp.cos(w)) for w in carry.memory.now)

    by_chunks = jax.grad(lambda *a: loss(run_by_chunks, *a), argnums=(0, 1))(layer, inputs)
    by_steps = jax.grad(lambda *a: loss(run_by_steps, *a), argnums=(0, 1))(layer, inputs)
    assert_close(by_chunks, by_steps, rtol=1e-9)
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(by_chunks))


def test_an_initial_memory_that_is_not_learned_gets_no_gradient(x64):
    inputs = make_inputs(5)
    for learned in (True, False):
        layer = make_layer(make_memory("gradient", learn_initial=learned), chunk=2)
        gradient = jax.grad(lambda layer: jnp.sum(run_by_chunks(layer, inputs)[1]))(layer)
        (of_weights,) = gradient.memory_params.get_value().weights
        assert bool(jnp.any(of_weights != 0)) == learned


@pytest.mark.parametrize("name", ["local", "delta"])
def test_a_memory_of_one_layer_is_the_same_for_any_chunk(name, x64):
    inputs, memory = make_inputs(12), make_memory(name, BOTH)
    layers = [make_layer(memory, chunk=chunk) for chunk in (1, 5, 12, 64)]
    expected = run_by_chunks(layers[0], inputs)
    for layer in layers[1:]:
        carry, outputs = run_by_chunks(layer, inputs)
        assert_close((carry.memory.now, carry.memory.surprise), (expected[0].memory.now, expected[0].memory.surprise))
        assert_close(outputs, expected[1])


def of_one_example(layer, inputs):
    """Returns keys, values, queries, gates of the first example and head, `[T, ...]`, with keys of length one."""
    keys, values, queries, gates = (part[:, 0, 0] for part in tokens_of(layer, inputs))
    keys, queries = (part / np.linalg.norm(part, axis=-1, keepdims=True) for part in (keys, queries))
    return zip(keys, values, queries, gates, strict=True)


def first_weights(layer):
    return [np.array(w[0]) for w in layer.memory_params.get_value().weights]


def test_it_is_deltanet(x64):
    layer, inputs = make_layer(make_memory("delta", WriteOptions("l2")), chunk=4), make_inputs(9)
    (weights,), expected = first_weights(layer), []
    for k, v, q, (beta,) in of_one_example(layer, inputs):
        weights = weights - beta * np.outer(k, k @ weights - v)
        expected.append(q @ weights @ np.asarray(layer.to_output.kernel))
    assert_close(run_by_chunks(layer, inputs)[1][:, 0], np.array(expected))


def test_it_is_gated_deltanet(x64):
    layer, inputs = make_layer(make_memory("delta", WriteOptions("l2", forget=True)), chunk=4), make_inputs(9)
    (weights,), expected = first_weights(layer), []
    for k, v, q, (beta, alpha) in of_one_example(layer, inputs):
        weights = (1 - alpha) * weights - beta * np.outer(k, k @ weights - v)
        expected.append(q @ weights @ np.asarray(layer.to_output.kernel))
    assert_close(run_by_chunks(layer, inputs)[1][:, 0], np.array(expected))


def test_it_is_linear_attention(x64):
    """The output is queries by keys times values, weighted by the rates, plus the read of the initial memory."""
    layer, inputs = make_layer(make_memory("hebbian", WriteOptions("l2")), chunk=4), make_inputs(9)
    keys, values, queries, rates = map(np.array, zip(*of_one_example(layer, inputs), strict=True))
    attention = np.tril(queries @ keys.T) * rates.T
    expected = (queries @ first_weights(layer)[0] + attention @ values) @ np.asarray(layer.to_output.kernel)
    assert_close(run_by_chunks(layer, inputs)[1][:, 0], expected)


def test_it_is_the_memory_of_titans(x64):
    """Compares with equations 13 and 14 by autodiff: two layers, gradients at the beginning of each chunk of three.

    Our loss is the sum of squares. Titans' rate theta belongs to half of that sum, so it is twice our rate.
    """
    layer = make_layer(make_memory("gradient", BOTH, hidden_sizes=(6,), step_size="sum"), chunk=3)
    inputs = make_inputs(8)
    now = start = first_weights(layer)
    surprise, expected = [np.zeros_like(w) for w in now], []

    def answer(weights, x):
        return jnp.tanh(x @ weights[0]) @ weights[1]

    slope = jax.jit(jax.grad(lambda w, k, v: 0.5 * jnp.sum((answer(w, k) - v) ** 2)))
    for t, (k, v, q, (rate, alpha, eta)) in enumerate(of_one_example(layer, inputs)):
        start = now if t % 3 == 0 else start
        gradient = slope(start, k, v)
        surprise = [eta * s - 2 * rate * np.asarray(g) for s, g in zip(surprise, gradient, strict=True)]
        now = [(1 - alpha) * w + s for w, s in zip(now, surprise, strict=True)]
        expected.append(np.asarray(answer(now, q)) @ np.asarray(layer.to_output.kernel))
    assert_close(run_by_chunks(layer, inputs)[1][:, 0], np.array(expected))


def test_padding_changes_nothing_and_gets_no_gradient(x64):
    layer = make_form("local")
    inputs, mask = make_inputs(10), jnp.ones((10, B), bool).at[7:, 0].set(False)
    holes = jnp.where(mask[..., None], inputs, jnp.nan)
    carry, outputs = run_by_chunks(layer, holes, mask=mask)
    alone, short = run_by_chunks(layer, inputs[:7])
    assert_close(outputs[:7, 0], short[:, 0])
    assert np.all(outputs[7:, 0] == 0) and np.all(outputs[7:, 1] != 0)
    for padded, plain in zip(jax.tree.leaves(carry.memory.now), jax.tree.leaves(alone.memory.now), strict=True):
        assert_close(padded[0], plain[0])

    def loss(x):
        carry, outputs = run_by_chunks(layer, x, mask=mask)
        return jnp.sum(carry.memory.now[0]) + jnp.sum(outputs)

    slope = jax.grad(loss)(holes)
    assert np.all(slope[7:, 0] == 0) and np.all(np.abs(slope[7:, 1]).max(-1) > 0) and np.all(np.isfinite(slope))


def test_inputs_of_zeros_have_finite_gradients():
    layer = make_layer(make_memory("gradient", WriteOptions("l2"), jnp.float32, **TWO_LAYERS), jnp.float32, chunk=4)
    gradient = jax.grad(lambda layer: jnp.sum(run_by_chunks(layer, jnp.zeros((6, B, D)))[1]))(layer)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_an_example_does_not_depend_on_the_others(x64):
    layer, inputs = make_form("local"), make_inputs(9)
    other = inputs.at[:, 1].set(7.0)
    assert_close(run_by_chunks(layer, inputs)[1][:, 0], run_by_chunks(layer, other)[1][:, 0], rtol=0, atol=0)


def test_the_carry_has_the_examples_first_and_none_begins_a_sequence(x64):
    layer, inputs = make_form("convolution"), make_inputs(7)
    start = layer.initialize_carry((B, D))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(start)} == {B}
    for run in (run_by_chunks, run_by_steps):
        carry, outputs = run(layer, inputs, start)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), carry) == jax.tree.map(lambda x: (x.shape, x.dtype), start)
        alone, output = run(layer, inputs[:, 1:], jax.tree.map(lambda leaf: leaf[1:], start))
        assert_close((jax.tree.map(lambda leaf: leaf[1:], carry), outputs[:, 1:]), (alone, output))
    assert_close(layer.step(None, inputs[0]), layer.step(start, inputs[0]), rtol=0, atol=0)
    assert_close(layer(None, inputs), layer(start, inputs), rtol=0, atol=0)


def test_time_may_be_the_second_axis(x64):
    layer, inputs, mask = make_form("local"), make_inputs(7), jnp.ones((7, B), bool).at[4:, 0].set(False)
    carry, outputs = layer(None, inputs.swapaxes(0, 1), mask=mask.T, time_major=False)
    assert_close((carry, outputs.swapaxes(0, 1)), layer(None, inputs, mask=mask), rtol=0, atol=0)


def test_no_tokens_and_no_examples_give_empty_results(x64):
    layer, inputs = make_form("convolution"), make_inputs(6)
    carry, _ = layer(None, inputs)
    same, outputs = layer(carry, inputs[:0])
    assert outputs.shape == (0, B, D)
    assert_close(same, carry, rtol=0, atol=0)
    assert layer(None, inputs[:, :0])[1].shape == (6, 0, D)


def test_half_precision_keeps_the_memory_in_single():
    inputs = make_inputs(12, jnp.float32)
    memory = make_memory("local", WriteOptions("l2", forget=True), jnp.float32, **TWO_LAYERS)
    whole = make_layer(memory, jnp.float32, chunk=4, heads=2)
    half = make_layer(memory, jnp.float32, chunk=4, heads=2, dtype=jnp.bfloat16)
    carry, outputs = run_by_chunks(half, inputs)
    assert outputs.dtype == jnp.bfloat16 and {w.dtype for w in carry.memory.now} == {jnp.dtype(jnp.float32)}
    stepped, by_steps = run_by_steps(half, inputs)
    expected_carry, expected = run_by_chunks(whole, inputs)
    for found, tolerance in ((outputs, 0.05), (by_steps, 0.05)):
        assert_close(found.astype(jnp.float32), expected, rtol=0, atol=tolerance * float(jnp.abs(expected).max()))
    for state in (carry, stepped):
        for a, b in zip(state.memory.now, expected_carry.memory.now, strict=True):
            assert_close(a, b, rtol=0, atol=0.05 * float(jnp.abs(b).max()))


def test_a_second_equal_layer_compiles_nothing_anew():
    traces = []

    @jax.jit
    def run(layer, x):
        traces.append(x.shape)
        return layer(None, x)[1]

    make = lambda seed: NeuralMemoryLayer(D, make_memory("delta", dtype=jnp.float32), rngs=nnx.Rngs(seed))  # noqa: E731
    first, second = (run(make(seed), make_inputs(3, jnp.float32)) for seed in range(2))
    assert len(traces) == 1 and np.any(first != second)


def hebb(network, weights, keys, values):
    return (Pair(keys, -values),), weights.product(0, keys)


REFUSED = {
    "optimizer": (
        lambda: make_memory("gradient", WriteOptions(optimizer=optax.sgd(0.1)), jnp.float32),
        r"WriteOptions\(optimizer=.*leave optimizer=None, or run this memory step by step in MNMCell",
    ),
    "inner_steps": (
        lambda: make_memory("local", WriteOptions(inner_steps=2), jnp.float32),
        r"WriteOptions\(inner_steps=2\).*leave inner_steps=1",
    ),
    "max_norm": (
        lambda: make_memory("delta", WriteOptions(max_norm=0.5), jnp.float32),
        r"WriteOptions\(max_norm=0.5\).*leave max_norm=None",
    ),
    "custom_memory": (
        lambda: custom_memory(K, V, init=lambda key: jnp.zeros((K, V)), apply=lambda w, k: k @ w),
        "written in pairs, got CustomMemory: use gradient_memory, local_memory or matrix_memory",
    ),
    "rule": (lambda: rule_memory(K, V, hebb), r"got the rule FunctionRule\(.*hebb.*ErrorRule or a SnapshotRule"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_memory_that_chunks_cannot_follow_is_refused_when_the_layer_is_made(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        NeuralMemoryLayer(D, make(), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"convolution": 0}, "convolution must be >= 1, got 0"),
        ({"chunk": 0}, "chunk must be >= 1, got 0"),
        ({"heads": -1}, "heads must be >= 1, got -1"),
        ({"features": 0}, "features must be >= 1, got 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_layer(make_memory("delta", dtype=jnp.float32), jnp.float32, **settings)


def test_wrong_shapes_are_named():
    layer = make_layer(make_memory("delta", dtype=jnp.float32), jnp.float32)
    with pytest.raises(ValueError, match=r"inputs must have shape \[T, B, D\], got \(2, 5\)"):
        layer(None, jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"inputs must have shape \[B, D\] = \[B, 5\], got \(2, 4\)"):
        layer.step(None, jnp.zeros((2, 4)))
    with pytest.raises(TypeError, match="mask must be an array of bools, got dtype float32"):
        layer(None, jnp.zeros((3, 2, 5)), mask=jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"mask must have shape \[B, T\] = \[2, 3\], got \(3, 2\)"):
        layer(None, jnp.zeros((2, 3, 5)), mask=jnp.ones((3, 2), bool), time_major=False)
    with pytest.raises(ValueError, match=r"inputs must have D = 5 features on the last axis, got \(2, 3, 4\)"):
        layer(None, jnp.zeros((2, 3, 4)), time_major=False)
