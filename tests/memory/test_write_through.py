"""Tests writes whose hidden layers are written one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnm_jax import WriteOptions, local_memory
from tests.compiled import compiled

B, K, V, HIDDEN = 2, 4, 3, 5
RATE, FORGET, MOMENTUM = np.array([0.4, 0.9]), np.array([0.1, 0.6]), np.array([0.3, 0.8])


def normal(seed, *shape):
    return np.asarray(jax.random.normal(jax.random.key(seed), shape, jnp.float64))


def by_numpy(memory, params, pre_activation, keys, values):
    """Returns weights and running writes of every example after writes with one head, layer by layer."""
    kernel, bias = map(np.asarray, params.targets)
    results = []
    for b in range(B):
        weights = [np.array(w) for w in params.weights]
        surprise = [np.zeros_like(w) for w in weights]
        for key, value in zip(keys[:, b], values[:, b], strict=True):
            targets = np.split(value @ kernel + bias, [HIDDEN])
            x = key
            for layer, target in enumerate(targets):
                answer = x @ weights[layer]
                error = (answer if layer or pre_activation else np.tanh(answer)) - target
                surprise[layer] = MOMENTUM[b] * surprise[layer] - RATE[b] * np.outer(x, error) / (x @ x)
                weights[layer] = (1 - FORGET[b]) * weights[layer] + surprise[layer]
                x = np.tanh(x @ weights[layer])
        results.append((*weights, *surprise))
    return [np.stack(leaves) for leaves in zip(*results, strict=True)]


@pytest.mark.parametrize("pre_activation", [False, True])
def test_a_layers_inputs_are_computed_after_the_write_of_the_layer_below(pre_activation, x64):
    settings = {"write_through": True, "pre_activation": pre_activation, "param_dtype": jnp.float64}
    options = WriteOptions(forget=True, momentum=True)
    memory = local_memory(K, V, hidden_sizes=(HIDDEN,), options=options, **settings)
    params = memory.init(jax.random.key(0))
    keys, values = normal(1, 3, B, K), normal(2, 3, B, V)

    @jax.jit
    def run(keys, values):
        state = memory.start(params, B)
        for k, v in zip(keys, values, strict=True):
            state, _ = memory.write(params, state, k[:, None], v[:, None], RATE, forget=FORGET, momentum=MOMENTUM)
        return state

    state = run(keys, values)
    expected = by_numpy(memory, params, pre_activation, keys, values)
    for found, wanted in zip((*state.weights, *state.surprise), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)


def test_a_write_at_rate_one_is_read_back_at_once_by_several_heads(x64):
    """With write-through, the last layer is written at the inputs of later reads; otherwise at older inputs."""
    losses = {}
    for through in (True, False):
        memory = local_memory(K, V, hidden_sizes=(HIDDEN,), write_through=through, param_dtype=jnp.float64)
        params = memory.init(jax.random.key(0))
        write = jax.jit(lambda state, k, v: memory.write(params, state, k, v, jnp.ones(B, jnp.float64))[1])  # noqa: B023
        losses[through] = write(memory.start(params, B), normal(1, B, 2, K), normal(2, B, 2, V))
    assert np.all(losses[True].loss_after < 1e-20) and np.all(losses[False].loss_after > 1e-2)
    np.testing.assert_allclose(losses[True].loss_before, losses[False].loss_before, rtol=1e-12)


def test_a_hidden_weight_grows_with_every_write_if_its_error_is_computed_after_the_activation(x64):
    """The target of the hidden unit is 2, which tanh cannot reach: each of 50 writes adds an error of more than 1."""
    weights = {}
    for before in (True, False):
        settings = {"write_through": True, "pre_activation": before, "epsilon": 0.0, "param_dtype": jnp.float64}
        memory = compiled(local_memory(1, 1, hidden_sizes=(1,), **settings))
        params = memory.init(jax.random.key(0))
        params = params._replace(targets=params.targets._replace(kernel=jnp.array([[2.0, 1.0]])))
        state, one = memory.start(params, 1), jnp.ones((1, 1, 1), jnp.float64)
        for _ in range(50):
            state, _ = memory.write(params, state, one, one, jnp.ones(1, jnp.float64))
        weights[before] = float(state.weights[0][0, 0, 0])
    start = float(params.weights[0][0, 0])
    assert weights[True] == pytest.approx(2.0, abs=1e-12)
    assert start + 50 < weights[False] < start + 150


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pre_activation": True},
            "pre_activation=True needs write_through=True with hidden.*set write_through",
        ),
        (
            {"write_through": True, "options": WriteOptions(max_norm=0.5)},
            "must be False with max_norm=0.5",
        ),
        ({"write_through": True, "options": WriteOptions(never_worse=True)}, "with never_worse=True, got True: this"),
        ({"write_through": True, "options": WriteOptions(optimizer=optax.sgd(0.1))}, "False with optimizer="),
    ],
    ids=["pre_activation", "max_norm", "never_worse", "optimizer"],
)
def test_what_does_not_fit_together_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        local_memory(K, V, hidden_sizes=(HIDDEN,), **settings)


def test_flags_are_checked_and_change_nothing_without_hidden_layers():
    with pytest.raises(TypeError, match="write_through must be True or False, got 1"):
        local_memory(K, V, hidden_sizes=(), write_through=1)
    plain, flags = (local_memory(K, V, hidden_sizes=(), **given) for given in ({}, {"pre_activation": True}))
    params, given = plain.init(jax.random.key(0)), (jnp.ones((B, 1, K)), jnp.ones((B, 1, V)), jnp.full(B, 0.5))
    states = [jax.jit(memory.write)(params, memory.start(params, B), *given)[0] for memory in (plain, flags)]
    np.testing.assert_array_equal(*(state.weights[0] for state in states))
