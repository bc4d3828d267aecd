"""Tests the optimiser against numbers worked by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnm_jax import LSTMCell
from mnm_jax._params import leaf_names
from mnm_jax.training import SequenceModel, make_optimizer


@functools.partial(jax.jit, static_argnums=0)
def first_update(optimizer, gradient, params):
    return optimizer.update(gradient, optimizer.init(params), params)[0]


def sizes(steps, count, **settings):
    """Returns the lengths of the first `count` SGD updates of a scalar whose gradient is always 1."""
    optimizer = make_optimizer(name="sgd", steps=steps, **settings)
    state, updates = jax.jit(optimizer.init)(jnp.zeros(1)), []
    step = jax.jit(optimizer.update)
    for _ in range(count):
        update, state = step(jnp.ones(1), state)
        updates.append(-float(update[0]))
    return updates


def test_a_long_gradient_is_scaled_to_the_given_norm_and_a_short_one_is_left():
    optimizer = make_optimizer(name="sgd", learning_rate=0.5, steps=1, clip_norm=1.0)
    for gradient, expected in (([3.0, 4.0], [-0.3, -0.4]), ([0.3, 0.4], [-0.15, -0.2])):
        np.testing.assert_allclose(first_update(optimizer, jnp.array(gradient), jnp.zeros(2)), expected, rtol=1e-6)


def test_schedules():
    assert sizes(9, 3, learning_rate=2.0) == [2.0, 2.0, 2.0]
    np.testing.assert_allclose(sizes(9, 6, learning_rate=2.0, warmup_steps=4), [0, 0.5, 1, 1.5, 2, 2], rtol=1e-6)
    cosine = [1 + np.cos(np.pi * i / 4) for i in range(5)]
    np.testing.assert_allclose(sizes(4, 5, learning_rate=2.0, schedule="cosine"), cosine, atol=1e-6)
    np.testing.assert_allclose(
        sizes(6, 7, learning_rate=2.0, schedule="cosine", warmup_steps=2), [0, 1, *cosine], atol=1e-6
    )
    trapezoid = [0, 1, 2, 2, 2, 2, 2, 2, 2, 1, 0, 0]
    np.testing.assert_allclose(
        sizes(10, 12, learning_rate=2.0, schedule="trapezoid", warmup_steps=2), trapezoid, atol=1e-6
    )
    np.testing.assert_allclose(sizes(1, 2, learning_rate=2.0, schedule="trapezoid"), [2, 0], atol=1e-6)
    np.testing.assert_allclose(sizes(3, 4, learning_rate=2.0, schedule="trapezoid", warmup_steps=2), [0, 1, 2, 0])


def test_weight_decay_is_none_unless_asked_for_and_apart_from_the_gradient():
    params, still = jnp.array([2.0]), jnp.zeros(1)
    for decay, expected in ((0.0, 0.0), (0.1, -0.5 * 0.1 * 2.0)):
        optimizer = make_optimizer(name="adamw", learning_rate=0.5, steps=1, weight_decay=decay)
        update = first_update(optimizer, still, params)
        np.testing.assert_allclose(update, [expected], atol=1e-7)


def test_epsilon_holds_back_small_gradients(x64):
    """Adam's first update is rate g / (|g| + epsilon)."""
    for name in ("adam", "adamw"):
        optimizer = make_optimizer(name=name, learning_rate=0.5, steps=1, epsilon=0.25)
        update = first_update(optimizer, jnp.array([0.75, -0.25]), jnp.zeros(2))
        np.testing.assert_allclose(update, [-0.375, 0.25], rtol=1e-6)  # bias is corrected in single precision


@pytest.mark.parametrize("name, make", [("adam", optax.adam), ("nadam", optax.nadam)])
def test_names_mean_what_they_mean_in_optax(name, make):
    ours, theirs, params = make_optimizer(name=name, learning_rate=0.1, steps=3), make(0.1), jnp.ones(2)
    our_state, their_state = jax.jit(ours.init)(params), jax.jit(theirs.init)(params)
    our_step, their_step = jax.jit(ours.update), jax.jit(theirs.update)
    for gradient in (jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])):
        update, our_state = our_step(gradient, our_state)
        with jax.numpy_dtype_promotion("standard"):
            expected, their_state = their_step(gradient, their_state)
        np.testing.assert_allclose(update, expected, rtol=1e-6)


def test_muon_makes_the_update_of_a_matrix_orthogonal_and_gives_all_else_to_adamw():
    """The singular values of the gradient are 8, 2 and 1; Muon's five iterations make them 1 to within 30%."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=shape))[0] for shape in ((4, 3), (3, 3)))
    matrix = jnp.asarray(left @ np.diag([8.0, 2.0, 1.0]) @ right.T, jnp.float32)
    gradient = {"cell": {"bias": matrix[0], "kernel": matrix}, "encoder": matrix, "head": {"kernel": matrix}}
    params = jax.tree.map(jnp.ones_like, gradient)
    settings: dict = {"learning_rate": 0.5, "weight_decay": 0.1}
    optimizer = make_optimizer(name="muon", steps=1, **settings)
    update = jax.device_get(first_update(optimizer, gradient, params))

    step = -(update["cell"]["kernel"] + 0.5 * 0.1)  # without the weight decay
    values = left.T @ step @ right / (0.5 * 0.2 * np.sqrt(4))
    np.testing.assert_allclose(values - np.diag(np.diag(values)), 0, atol=1e-5)
    assert np.all((np.diag(values) > 0.7) & (np.diag(values) < 1.3))

    adamw = optax.adamw(**settings, nesterov=True)
    with jax.numpy_dtype_promotion("standard"):
        expected = first_update(adamw, gradient, params)
    for leaf in ("encoder", "head"):
        np.testing.assert_allclose(*map(jax.tree.leaves, (update[leaf], expected[leaf])), rtol=1e-6)
    np.testing.assert_allclose(update["cell"]["bias"], expected["cell"]["bias"], rtol=1e-6)


def test_muon_takes_the_matrices_of_a_sequence_models_cell_and_nothing_else():
    rngs = nnx.Rngs(0)
    cell = LSTMCell(3, 4, rngs=rngs)
    model = SequenceModel(nnx.Linear(2, 3, rngs=rngs), cell, 2, readout_features=5, rngs=rngs)
    params = nnx.state(model, nnx.Param)
    optimizer = make_optimizer(name="muon", learning_rate=0.5, steps=1)
    gradient = jax.tree.map(lambda leaf: np.arange(1, leaf.size + 1, dtype=np.float32).reshape(leaf.shape), params)
    update = jax.device_get(jax.tree.leaves(first_update(optimizer, gradient, params)))
    sizes = dict(zip(leaf_names(params), (np.ptp(np.abs(leaf)) for leaf in update), strict=True))
    # The first update of AdamW has the same size in every entry; that of Muon does not.
    assert {name for name, size in sizes.items() if size > 1e-3} == {"cell.dense_i.kernel", "cell.dense_h.kernel"}
    with pytest.raises(ValueError, match="^muon updates the matrices of the model's part `cell`, and there are none"):
        optimizer.init(nnx.state(model.encoder, nnx.Param))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "adm"}, "optimizer must be one of 'adam', 'adamw', 'muon', 'nadam', 'sgd', got 'adm'"),
        ({"schedule": "linear"}, "schedule must be one of 'constant', 'cosine', 'trapezoid', got 'linear'"),
        ({"learning_rate": -0.1}, "learning_rate must be > 0, got -0.1"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite, got inf"),
        ({"learning_rate": "0.1"}, "learning_rate must be a number, got '0.1' of type str"),
        ({"steps": 2.0}, "steps must be an integer >= 1, got 2.0 of type float"),
        ({"warmup_steps": 1.5}, "warmup_steps must be an integer >= 0, got 1.5 of type float"),
        ({"clip_norm": True}, "clip_norm must be a number, got True of type bool"),
        ({"name": ["adam"]}, "optimizer must be one of 'adam', 'adamw', 'muon', 'nadam', 'sgd', got ['adam']"),
        ({"warmup_steps": -1}, "warmup_steps must be >= 0, got -1"),
        ({"warmup_steps": 10}, "got warmup_steps=10, steps=10"),
        ({"clip_norm": 0.0}, "clip_norm must be > 0, got 0.0"),
        ({"epsilon": 0.0}, "epsilon must be > 0, got 0.0"),
        ({"weight_decay": -1.0, "name": "adamw"}, "weight_decay must be >= 0"),
        ({"weight_decay": 0.1}, "needs the optimizer adamw or muon, got 'adam'"),
    ],
)
def test_bad_settings_are_refused_in_one_line(changes, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        make_optimizer(**{"learning_rate": 0.1, "steps": 10} | changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
