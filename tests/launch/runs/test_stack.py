"""Tests stacks of layers: equal state, equal parameters, division between calls, and attention by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch.configs import league
from launch.runs.build import build_make_model, build_task, count_parameters
from launch.runs.size import describe, measure
from launch.runs.stack import Attention, layer_stack
from mnm_jax.training import TrainConfig

B, T, F = 2, 6, 8


def values(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def state_of(carry):
    """Returns the number of values that a mixer keeps per example, except the window of the convolution."""
    if hasattr(carry, "memory"):
        return values(carry.memory.now)
    return values((carry.keys, carry.values)) if hasattr(carry, "keys") else values(carry[1])


@pytest.mark.parametrize("group", ["recall_64", "recall_1024", "parity"])
def test_layers_have_the_state_of_their_config_and_models_equal_parameters(group):
    counts = {}
    for model in league.MODELS:
        config = league.get_config(f"{group}/{model}").to_dict()
        make = build_make_model(config["model"], build_task(config["task"]))
        counts[model] = count_parameters(make)
        carries = nnx.eval_shape(lambda make=make: make(nnx.Rngs(0)).start(1))
        assert [state_of(carry) for carry in carries] == config["model"]["layers"] * [config["model"]["state"]], model
        assert model not in league.MEMORIES or config["model"]["state"] == league.GROUPS[group].state
    assert max(counts.values()) <= 1.05 * min(counts.values()), counts


@functools.cache
def stack(mixer):
    state = {"attention": 2 * F * 16, "lstm": 16}.get(mixer, 16)
    make = layer_stack(mixer)
    return make(features=3, stack_features=F, state=state, block_parameters=1500, rngs=nnx.Rngs(0))


run = nnx.jit(lambda stack, carry, inputs, mask=None: stack(carry, inputs, mask=mask))


@pytest.mark.parametrize("mixer", ["attention", "lstm", "deep-after"])
def test_a_sequence_may_be_divided_and_padding_is_skipped(mixer):
    inputs = jax.random.normal(jax.random.key(0), (T, B, 3))
    _, whole = run(stack(mixer), None, inputs)
    carry, first = run(stack(mixer), None, inputs[:4])
    np.testing.assert_allclose(first, whole[:4], atol=1e-5)
    padded = jnp.insert(inputs[4:], 1, jnp.full((1, B, 3), 7.0), axis=0)
    mask = jnp.array([[True], [False], [True]]) & jnp.ones((1, B), bool)
    _, rest = run(stack(mixer), carry, padded, mask)
    np.testing.assert_allclose(rest[jnp.array([0, 2])], whole[4:], atol=1e-5)


@pytest.mark.parametrize("convolution", [1, 4])
def test_attention_is_numpys(convolution):
    attention = Attention(4, heads=2, window=3, convolution=convolution, rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (5, 1, 4))
    _, found = nnx.jit(lambda attention, x: attention(None, x))(attention, inputs)
    tokens = np.asarray(attention.to_vectors(inputs))[:, 0]
    if convolution > 1:
        taps = np.asarray(attention.convolution.taps.kernel)
        mixed = np.stack([sum(taps[j] * tokens[t - j] for j in range(min(4, t + 1))) for t in range(5)])
        tokens = mixed / (1 + np.exp(-mixed))
    queries, keys, read = np.split(tokens, 3, axis=1)
    expected = np.zeros((5, 4))
    for t in range(5):
        for head in (slice(0, 2), slice(2, 4)):
            weights = np.exp(keys[: t + 1, head] @ queries[t, head] / 2**0.5)
            expected[t, head] = weights @ read[: t + 1, head] / weights.sum()
    np.testing.assert_allclose(found[:, 0], expected @ np.asarray(attention.to_output.kernel), atol=1e-5)


@pytest.mark.parametrize(
    ("mixer", "state", "message"),
    [
        ("delta", 20, "state must be the square of an even number for delta, such as 1024, got 20"),
        ("deep-stale", 9, "state must be the square of an even number for deep-stale, such as 1024, got 9"),
        ("lstm", 9, "state must be a multiple of 2 for lstm"),
        ("attention", 24, f"state must be a multiple of {2 * F} for attention"),
    ],
)
def test_a_state_that_a_layer_cannot_have_is_refused(mixer, state, message):
    with pytest.raises(ValueError, match=message):
        layer_stack(mixer)(features=3, stack_features=F, state=state, block_parameters=1500, rngs=nnx.Rngs(0))


def test_a_block_that_cannot_hold_its_mixer_is_refused_by_name():
    with pytest.raises(ValueError, match=r"block_parameters must be >= \d+ for this mixer, got 100"):
        layer_stack("delta")(features=3, stack_features=F, state=16, block_parameters=100, rngs=nnx.Rngs(0))


def test_the_size_of_a_stack_counts_the_memories_of_all_blocks():
    """Two blocks of 1,024 float32 weights, and the windows of their convolutions: 3 steps of 3 * 32 features."""
    config = league.get_config("selective_copy/layer-delta").to_dict()
    task = build_task(config["task"])
    training = TrainConfig(steps=1, batch_size=1, learning_rate=1.0)
    size = measure(build_make_model(config["model"], task), task, training)
    assert (size.memory, size.carry) == (2 * 4 * 1024, 2 * 4 * (1024 + 3 * 3 * 32))
    assert "8.0 KiB of it fast weights" in describe(size, training)
