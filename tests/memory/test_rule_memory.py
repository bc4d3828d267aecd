"""Tests a user's write rule: Oja's rule against numpy and in every execution form, and the gradient as a rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import MNMCell, unroll
from mnm_jax.memory import Pair, WriteOptions, backward, forward, gradient_memory, rule_memory
from mnm_jax.memory._rules import DeltaRule, Rule
from mnm_jax.testing import check_memory_forms
from tests.compiled import compiled

B, H, K, V = 3, 2, 5, 4
RATE = np.array([0.2, 0.5, 0.9])


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def oja(network, weights, keys, values):
    """W <- W + beta sum_h (k_h - v_h W^T) (x) v_h."""
    del network
    return (Pair(keys - weights.product_transposed(0, values), -values),), weights.product(0, keys)


def descent(network, weights, keys, values):
    """Returns the gradient of the sum of squares."""
    activations = forward(network, weights, keys)
    answers = activations.outputs[-1]
    deltas = backward(network, weights, activations, 2 * (answers - values))
    return tuple(map(Pair, activations.inputs, deltas)), answers


def test_ojas_rule_is_numpys(x64):
    memory = compiled(rule_memory(K, V, oja, param_dtype=jnp.float64))
    params = memory.init(jax.random.key(0))
    state, expected = memory.start(params, B), np.array([params.weights[0]] * B)
    for step in range(3):
        keys, values = normal(step, B, H, K), normal(9 + step, B, H, V)
        state, info = memory.write(params, state, keys, values, RATE)
        old = expected.copy()
        for b in range(B):
            change = sum(np.outer(k - old[b] @ v, v) for k, v in zip(keys[b], values[b], strict=True))
            expected[b] = old[b] + RATE[b] * change
        np.testing.assert_allclose(state.weights[0], expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(info.update_norm, np.linalg.norm(expected - old, axis=(1, 2)), rtol=1e-10)
    np.testing.assert_allclose(memory.read(params, state, keys), np.einsum("bhk,bkv->bhv", keys, expected), rtol=1e-10)


@pytest.mark.slow  # test_forms.py runs the library's rules in every form
@pytest.mark.parametrize("options", [WriteOptions(), WriteOptions("layer", 0.5, 2)], ids=["plain", "pairs"])
def test_ojas_rule_runs_in_every_form(options, x64):
    memory = rule_memory(K, V, oja, options=options, param_dtype=jnp.float64)
    cell = MNMCell(4, 6, memory, heads=H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x, mask = normal(1, 6, B, 4), np.random.default_rng(0).random((6, B)) > 0.3

    def loss(cell, x, form):
        leaves = jax.tree.leaves(unroll(cell, None, x, form=form, mask=mask))
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in leaves)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
    expected = run(cell, x, "plain")
    assert all(np.any(g != 0) for g in jax.tree.leaves(expected[1][0].memory_params.get_value()))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)  # noqa: E731
    for form in ("reversible", "factored"):
        jax.tree.map(close, run(cell, x, form), expected)


@pytest.mark.parametrize("use_bias", [False, True])
def test_the_gradient_as_a_rule_of_ones_own_is_the_gradient_memory(use_bias, x64):
    sizes = {"hidden_sizes": (6, 7), "use_bias": use_bias, "activation": jnp.sin, "param_dtype": jnp.float64}
    memories = rule_memory(K, V, descent, **sizes), gradient_memory(K, V, step_size="sum", **sizes)
    own, ours = map(compiled, memories)
    params = own.init(jax.random.key(0))
    states = [own.start(params, B)] * 2
    for step in range(2):
        given = normal(step, B, H, K), normal(9 + step, B, H, V), RATE
        states = [memory.write(params, state, *given)[0] for memory, state in zip((own, ours), states, strict=True)]
    for a, b in zip(states[0].weights, states[1].weights, strict=True):
        np.testing.assert_array_equal(a, b)


class Gain(Rule):
    """The delta rule times a learned gain and a learned mixture of the values."""

    def init(self, network, key, dtype):
        return {"gain": jnp.ones((), dtype), "mix": jax.random.normal(key, (V, V), dtype)}

    def pairs(self, network, targets, weights, keys, values):
        answers = weights.product(0, keys)
        delta = answers - weights.slow_product(values, targets["mix"])
        return (Pair(keys, jnp.broadcast_to(targets["gain"], delta.shape) * delta),), answers


def test_a_rule_learns_parameters_of_its_own_in_every_form(x64):
    memory = rule_memory(K, V, Gain(), param_dtype=jnp.float64)
    cell = MNMCell(4, 6, memory, heads=H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = normal(1, 6, B, 4)

    def loss(cell, form):
        return jnp.sum(jnp.sin(unroll(cell, None, x, form=form)[1].features))

    run = jax.jit(jax.grad(loss), static_argnums=1)
    expected = run(cell, "plain").memory_params.get_value().targets
    assert all(np.all(g != 0) for g in jax.tree.leaves(expected))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)  # noqa: E731
    for form in ("auto", "reversible", "factored"):
        jax.tree.map(close, run(cell, form).memory_params.get_value().targets, expected)


class NoPairs(Rule):
    """A rule object whose result does not fit."""

    def pairs(self, network, targets, weights, keys, values):
        return (), weights.product(0, keys)


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        (oja, {"hidden_sizes": (3,)}, "does not match previous terms"),
        (lambda n, w, k, v: ((), w.product(0, k)), {}, r"one Pair per layer, 1 with hidden_sizes=\(\), got \(\)"),
        (lambda n, w, k, v: ((Pair(k, k),), w.product(0, k)), {}, r"delta \[B, R, 4\] for layer 0, got .*\(2, 3, 5\)"),
        (
            lambda n, w, k, v: ((Pair(k[:, :0], v[:, :0]),), w.product(0, k)),
            {},
            r"at least one row, got inputs \(2, 0, 5\) for layer 0: return a row of zeros",
        ),
        (lambda n, w, k, v: ((Pair(k, v),), k), {}, r"answers \[B, H, 4\], got \(2, 3, 5\) for B = 2 and H = 3"),
        ("delta", {}, "rule must be a function or a Rule, got 'delta': rules by name are in matrix_memory"),
        (
            lambda n, w, k, v: (tuple(Pair(k, v) for _ in w.weights), v),
            {},
            r"rule must use the weights only through weights.product.*got weights\.weights",
        ),
        (lambda n, w, k, v: None, {}, r"rule must return \(pairs, answers\), with one Pair per layer, got None"),
        (DeltaRule(), {"hidden_sizes": (3,)}, "got DeltaRule, which writes a single one, with hidden_sizes=.3,.: use"),
        (NoPairs(), {}, r"one Pair per layer, 1 with hidden_sizes=\(\), got \(\)"),
        (oja, {"options": {}}, "options must be a WriteOptions, got {}: pass WriteOptions"),
        (oja, {"hidden_sizes": (3, 0)}, r"hidden_sizes\[1\] must be >= 1, got 0"),
        (oja, {"initial_gain": -1.0}, "initial_gain must be >= 0, got -1.0"),
        (oja, {"options": WriteOptions(key_norm="rms")}, "key_norm must be one of None, 'l2', 'layer', got 'rms'"),
    ],
)
def test_what_does_not_fit_is_an_error_when_the_memory_is_made(rule, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        rule_memory(K, V, rule, **settings)


def test_with_gates_a_pair_may_have_no_rows():
    """Such a write only forgets: its weights are dense, and the pair adds nothing to them."""
    rule = lambda n, w, k, v: ((Pair(k[:, :0], v[:, :0]),), w.product(0, k))  # noqa: E731
    memory = rule_memory(K, V, rule, options=WriteOptions(forget=True))
    params = memory.init(jax.random.key(0))
    keys, values, rate = jnp.ones((1, 1, K)), jnp.ones((1, 1, V)), jnp.ones(1)
    before = memory.start(params, 1)
    after, _ = memory.write(params, before, keys, values, rate, forget=jnp.full(1, 0.25))
    np.testing.assert_allclose(after.weights[0], 0.75 * before.weights[0], rtol=1e-6)


def in_a_loop(network, weights, keys, values):
    """The delta rule, with the answers of one head after the other."""
    answers = jax.lax.map(lambda key: weights.product(0, key[:, None])[:, 0], jnp.swapaxes(keys, 0, 1))
    answers = jnp.swapaxes(answers, 0, 1)
    return (Pair(keys, answers - values),), answers


def test_a_rule_with_products_in_a_loop_is_refused_by_name_and_runs_plain(x64):
    memory = rule_memory(K, V, in_a_loop, param_dtype=jnp.float64)
    check_memory_forms(memory)
    cell = MNMCell(4, 6, memory, heads=H, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="a step of the cell, or its memory's write rule, .*lax.scan.*form='plain'"):
        unroll(cell, None, normal(1, 6, B, 4), form="reversible")


def test_a_rule_may_pass_the_weights_to_a_compiled_function():
    product = jax.jit(lambda weights, keys: weights.product(0, keys))

    def rule(network, weights, keys, values):
        answers = product(weights, keys)
        return (Pair(keys, answers - values),), answers

    assert rule_memory(5, 4, rule).value_size == 4
