"""Tests memories with a user's own network and inner loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import MNMCell, WriteOptions, custom_memory, gradient_memory, unroll
from mnm_jax.testing._contract import assert_derivatives
from tests.compiled import compiled

B, K, V = 3, 5, 4
RATE = np.array([0.2, 0.5, 0.9])


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def mlp(weights, key):
    return jnp.tanh(key @ weights["up"]) @ weights["down"]


def init_mlp(key):
    up, down = jax.random.split(key)
    return {"up": jax.random.normal(up, (K, 6)) / 2, "down": jax.random.normal(down, (6, V)) / 2}


@pytest.mark.parametrize(("step", "theirs", "heads"), [("sum", "sum", 3), ("normalised", "normalised", 1)])
def test_an_mlp_of_ones_own_is_the_gradient_memory(step, theirs, heads, x64):
    """For one head Polyak's step is the normalised step, also where the write of a short key fades out."""
    own = compiled(custom_memory(K, V, init=init_mlp, apply=mlp, step_size=step, epsilon=0.1))
    ours = compiled(gradient_memory(K, V, hidden_sizes=(6,), step_size=theirs, epsilon=0.1, param_dtype=jnp.float64))
    params = own.init(jax.random.key(0))
    weights = (params.weights["up"], params.weights["down"])
    state, expected = own.start(params, B), ours.start(params._replace(weights=weights), B)
    for seed in range(3):
        keys, values, asked = normal(seed, B, heads, K), normal(seed + 9, B, heads, V), normal(seed + 20, B, 2, K)
        keys = keys * np.array([1.0, 0.1, 1.0])[:, None, None]
        state, info, read = own.write_read(params, state, keys, values, RATE, asked)
        expected, info_of_ours, read_of_ours = ours.write_read(params, expected, keys, values, RATE, asked)
        np.testing.assert_allclose(state.weights["up"], expected.weights[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(read, read_of_ours, rtol=1e-9, atol=1e-12)
        for a, b in zip(info, info_of_ours, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        WriteOptions("l2"),
        WriteOptions("layer"),
        WriteOptions(inner_steps=3),
        WriteOptions("l2", 0.5, 2, forget=True, momentum=True),
    ],
    ids=str,
)
def test_the_options_are_those_of_the_gradient_memory(options, x64):
    settings = {"step_size": "sum", "options": options}
    own = compiled(custom_memory(K, V, init=init_mlp, apply=mlp, **settings))
    ours = compiled(gradient_memory(K, V, hidden_sizes=(6,), param_dtype=jnp.float64, **settings))
    params = own.init(jax.random.key(0))
    state = own.start(params, B)
    expected = ours.start(params._replace(weights=(params.weights["up"], params.weights["down"])), B)
    gates = {name: RATE / (2 + n) for n, name in enumerate(options.gates)}
    for seed in range(2):
        written = normal(seed, B, 2, K), normal(seed + 9, B, 2, V), RATE
        state, _ = own.write(params, state, *written, **gates)
        expected, _ = ours.write(params, expected, *written, **gates)
        np.testing.assert_allclose(state.weights["up"], expected.weights[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(state.weights["down"], expected.weights[1], rtol=1e-9, atol=1e-12)


def test_a_loss_of_ones_own_is_what_a_write_descends(x64):
    """With the inner product as loss, a gradient step is the Hebbian rule over all heads of an example together."""
    memory = compiled(
        custom_memory(
            K,
            V,
            init=lambda key: jax.random.normal(key, (K, V)),
            apply=lambda w, k: k @ w,
            loss=lambda predicted, values: -jnp.sum(predicted * values),
            step_size="sum",
        )
    )
    params = memory.init(jax.random.key(0))
    state, keys, values = memory.start(params, B), normal(1, B, 2, K), normal(2, B, 2, V)
    written, _ = memory.write(params, state, keys, values, RATE)
    weights, before = jax.device_get((written.weights, params.weights))
    for b in range(B):
        added = sum(np.outer(keys[b, h], values[b, h]) for h in range(2))
        np.testing.assert_allclose(weights[b], before + RATE[b] * added, rtol=1e-9)


def test_max_norm_bounds_all_of_a_trees_leaves_together(x64):
    options = WriteOptions(max_norm=0.01)
    memory = compiled(custom_memory(K, V, init=init_mlp, apply=mlp, step_size="sum", options=options))
    params = memory.init(jax.random.key(0))
    _, info = memory.write(params, memory.start(params, B), normal(1, B, 1, K), normal(2, B, 1, V), RATE)
    np.testing.assert_allclose(info.update_norm, 0.01 * RATE, rtol=1e-9)


def test_never_worse_shortens_writes_by_the_users_own_loss(x64):
    """f(k) = w k with w = 0, key 1 and value 2: the gradient of 3 (f - v)^2 is -12, which overshoots."""
    memory = compiled(
        custom_memory(
            1,
            1,
            init=lambda key: jnp.zeros(()),
            apply=lambda w, k: w * k,
            loss=lambda predicted, values: 3 * jnp.sum((predicted - values) ** 2),
            step_size="sum",
            options=WriteOptions(never_worse=True),
        )
    )
    state, one = memory.start(memory.init(jax.random.key(0)), 2), np.ones((2, 1, 1))
    state, info = memory.write(memory.init(jax.random.key(0)), state, one, 2 * one, np.array([1.0, 1 / 3]))
    np.testing.assert_allclose(state.weights, [3, 4])  # a quarter of 12; 4 leaves the loss as it is


@pytest.mark.parametrize("learned", [True, False])
def test_gradients_through_a_network_of_ones_own_are_those_of_finite_differences(learned, x64):
    options = WriteOptions("l2", 3.0, 2, forget=True)
    memory = compiled(custom_memory(K, V, init=init_mlp, apply=mlp, learn_initial=learned, options=options))
    params = memory.init(jax.random.key(0))

    def loss(params, keys, values, rate):
        state, info = memory.write(params, memory.start(params, B), keys, values, rate, forget=rate / 2)
        return jnp.sum(jnp.sin(memory.read(params, state, keys))) + jnp.sum(info.loss_after)

    given = (normal(1, B, 2, K), normal(2, B, 2, V), RATE)
    if learned:
        assert_derivatives(lambda given: loss(*given), (params, *given), order=1)
    else:
        assert_derivatives(lambda given: loss(params, *given), given, order=1)
    gradient = jax.jit(jax.grad(loss))(params, *given)
    assert any(np.any(g != 0) for g in jax.tree.leaves(gradient)) == learned


def test_in_a_cell_a_sequence_may_be_cut_anywhere(x64):
    """The network is a flax module; its state is the weights."""
    graph, _ = nnx.split(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    memory = custom_memory(
        4,
        3,
        init=lambda key: nnx.split(nnx.Linear(4, 3, rngs=nnx.Rngs(key)))[1],
        apply=lambda weights, key: nnx.merge(graph, weights)(key),
        options=WriteOptions(momentum=True),
    )
    cell = MNMCell(4, 6, memory, heads=2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (6, B, 4), jnp.float32)
    run = jax.jit(unroll)
    whole = run(cell, None, x)
    carry, first = run(cell, None, x[:2])
    carry, second = run(cell, carry, x[2:])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, (carry, np.concatenate([first.features, second.features])), (whole[0], whole[1].features))
    gradient = jax.jit(jax.grad(lambda cell: jnp.sum(unroll(cell, None, x)[1].features ** 2)))(cell)
    assert all(np.any(g != 0) for g in jax.tree.leaves(gradient.memory_params.get_value()))


GOOD = {"init": init_mlp, "apply": mlp}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"apply": lambda w, k: mlp(w, k)[None]}, r"of shape \(5,\) to a value of shape \(4,\), .* got \(1, 4\)"),
        ({"apply": lambda w, k: (mlp(w, k), k)}, "got tuple"),
        ({"init": lambda key: {}}, "at least one array"),
        ({"init": lambda key: init_mlp(key) | {"n": jnp.arange(3)}}, r"floating-point arrays.* got int32 at \['n'\]"),
        ({"loss": lambda a, b: jnp.sum((a - b) ** 2, -1)}, r"to a scalar, got \(2,\)"),
        ({"step_size": "paper"}, "step_size must be one of 'normalised', 'sum', got 'paper'"),
        ({"epsilon": -1.0}, "epsilon must be >= 0"),
        ({"key_size": 0}, "key_size must be >= 1, got 0"),
        ({"options": WriteOptions(inner_steps=-1)}, "inner_steps must be >= 1"),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, dict) else "",
)
def test_what_does_not_fit_is_said_when_the_memory_is_made(changed, message):
    with pytest.raises(ValueError, match=message):
        custom_memory(**{"key_size": K, "value_size": V, **GOOD, **changed})


NEGATIVE = {
    "inner product": lambda answers, values: -jnp.sum(answers * values),
    "anti-Hebbian": lambda answers, values: jnp.sum(answers * values),
    "mean": jax.jit(lambda answers, values: -jnp.mean(answers * values)),
    "shifted": lambda answers, values: jnp.sum((answers - values) ** 2) - 1,
}
NOT_NEGATIVE = {
    "cross entropy": lambda answers, values: -jnp.sum(values * jax.nn.log_softmax(answers)),
    "of logits": lambda answers, values: jnp.sum(jax.nn.softplus(answers) - values * answers),
    "of probabilities": lambda answers, values: -jnp.sum(values * jnp.log(answers)),
    "cosine": lambda a, v: 1 - jnp.sum(a * v) / jnp.maximum(jnp.linalg.norm(a) * jnp.linalg.norm(v), 1e-6),
}


@pytest.mark.parametrize("name", NEGATIVE)
@pytest.mark.parametrize("traced", [False, True])
def test_a_normalised_step_on_a_loss_that_is_negative_is_refused(name, traced):
    """Its writes would change nothing, whatever the rate."""
    settings = {**GOOD, "loss": NEGATIVE[name]}

    def make():
        custom_memory(K, V, **settings)
        return jnp.zeros(())

    with pytest.raises(ValueError, match="loss must be >= 0 with step_size='normalised', got -.*: use step_size='sum'"):
        jax.eval_shape(make) if traced else make()
    memory = compiled(custom_memory(K, V, **settings, step_size="sum"))
    params, written = memory.init(jax.random.key(0)), (normal(0, B, 1, K), normal(1, B, 1, V), RATE)
    _, info = memory.write(params, memory.start(params, B), *written)
    assert np.all(info.update_norm > 0)


@pytest.mark.parametrize("name", NOT_NEGATIVE)
def test_a_loss_of_likelihoods_is_accepted_with_normalised_steps(name):
    with jax.debug_nans(True):  # log(-1) in the check is no error
        custom_memory(K, V, **GOOD, loss=NOT_NEGATIVE[name])


def test_a_loss_that_computes_in_float32_is_accepted_for_weights_in_bfloat16():
    def loss(answers, values):
        return jnp.sum(jnp.square(answers.astype(jnp.float32) - values.astype(jnp.float32)))

    custom_memory(
        K, V, init=lambda key: jax.random.normal(key, (K, V), jnp.bfloat16), apply=lambda w, k: k @ w, loss=loss
    )


def test_a_loss_that_closes_over_a_traced_value_is_not_checked():
    def make(scale):
        custom_memory(K, V, **GOOD, loss=lambda answers, values: scale * jnp.sum((answers - values) ** 2))
        return scale

    assert jax.jit(make)(2.0) == 2


def test_an_error_of_the_users_own_comes_as_it_is():
    def broken(weights, key):
        raise KeyError("my own mistake")

    with pytest.raises(KeyError, match="my own mistake"):
        custom_memory(K, V, init=init_mlp, apply=broken)
