"""Tests one update: the objective by hand, independent seeds, and numbers that are not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnm_jax import LSTMCell
from mnm_jax.training import SequenceModel, TrainState, init_state, make_optimizer, make_update, split_model
from mnm_jax.training._update import describe_fault, fault_names


def compiled_step(tiny, task, make_model=None, optimizer=None, meta_weight=0.5):
    make_model = make_model or tiny.Model
    optimizer = optimizer or optax.sgd(0.1)
    step = make_update(split_model(make_model), task, optimizer, meta_weight=meta_weight, batch_size=8)
    return jax.jit(jax.vmap(step, in_axes=(0, None))), init_state(make_model, optimizer, 3, 2)


@pytest.mark.parametrize("draw", ["draw_numpy", "draw_forks"])
def test_loss_is_equation_5_by_hand_and_the_update_is_its_gradient(tiny, x64, draw):
    step, state = compiled_step(tiny, tiny.Recall(reads=True))
    batch = getattr(tiny, draw)(0, 8)
    fork = np.zeros((5, 8), bool) if batch.fork is None else batch.fork
    new, metrics = step(state, batch)
    before, after = jax.device_get((state.params, new.params))

    def by_hand(weights, recurrent, head, np=np):
        hidden, task, meta, counted, real = np.zeros((8, 8)), 0.0, 0.0, 0.0, 0.0
        for t in range(5):
            mask = np.asarray(batch.mask[t], float)
            now = np.tanh(batch.inputs[t] @ weights + hidden @ recurrent)
            now = np.where(mask[:, None] > 0, now, hidden)
            hidden = np.where(fork[t][:, None], hidden, now)
            logits = now @ head
            logs = logits - np.log(np.sum(np.exp(logits), axis=1))[:, None]
            task -= np.sum(logs[np.arange(8), batch.targets[t]] * batch.loss_mask[t])
            meta += np.sum(mask * np.sqrt(np.sum((batch.inputs[t] @ weights) ** 2, axis=1)))
            counted, real = counted + np.sum(batch.loss_mask[t]), real + np.sum(mask)
        return task / counted, meta / real

    for seed in range(2):
        params = jax.tree.map(lambda leaf, seed=seed: leaf[seed], before)
        leaves = params["cell"]["weights"][0][...], params["cell"]["weights"][1][...], params["head"][...]
        task_loss, meta_loss = by_hand(*leaves)
        np.testing.assert_allclose(metrics.task_loss[seed], task_loss, rtol=1e-12)
        np.testing.assert_allclose(metrics.meta_loss[seed], meta_loss, rtol=1e-12)
        np.testing.assert_allclose(metrics.loss[seed], task_loss + 0.5 * meta_loss, rtol=1e-12)
        # A central difference along the update itself: its slope is the squared norm of the gradient.
        changes = jax.tree.map(lambda a, b, seed=seed: (a - b)[seed] / 0.1, before, after)
        grads = changes["cell"]["weights"][0][...], changes["cell"]["weights"][1][...], changes["head"][...]
        ahead, behind = (
            np.dot(by_hand(*(a + sign * 1e-6 * g for a, g in zip(leaves, grads, strict=True))), [1, 0.5])
            for sign in (1, -1)
        )
        squared = sum(float(np.sum(g**2)) for g in grads)
        np.testing.assert_allclose((ahead - behind) / 2e-6, squared, rtol=1e-6)
        np.testing.assert_allclose(metrics.grad_norm[seed], np.sqrt(squared), rtol=1e-9)


def test_float32_parameters_keep_their_dtype_where_float64_is_enabled(tiny, x64):
    """A task then samples float64 inputs; a state of another type would not fit the compiled update."""

    def make_model(rngs):
        return SequenceModel(lambda x: x, LSTMCell(4, 3, rngs=rngs), 3, rngs=rngs)

    step, state = compiled_step(tiny, tiny.Recall(), make_model)
    assert jax.eval_shape(lambda key: tiny.draw(key, 8), state.key[0]).inputs.dtype == jnp.float64
    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    with jax.numpy_dtype_promotion("standard"):
        new, metrics = step(state, None)
    assert kinds(new) == kinds(state)
    assert np.isfinite(metrics.loss).all() and np.any(
        new.params["head"]["kernel"][...] != state.params["head"]["kernel"][...]
    )


def test_a_model_without_memory_has_no_meta_loss(tiny):
    step, state = compiled_step(tiny, tiny.Recall(), lambda rngs: tiny.Model(rngs, memory=False), meta_weight=10.0)
    _, metrics = step(state, None)
    np.testing.assert_array_equal(metrics.loss, metrics.task_loss)
    np.testing.assert_array_equal(metrics.meta_loss, [0.0, 0.0])


def test_a_task_samples_by_the_number_of_updates_made(tiny):
    """Curricula need this: after 3 updates this task counts only the first three steps of a sequence."""

    @dataclasses.dataclass(frozen=True)
    class Growing(tiny.Recall):
        def sample(self, key, batch_size, step):
            batch = tiny.draw(key, batch_size)
            counted = jnp.arange(batch.mask.shape[0])[:, None] < step
            return batch._replace(loss_mask=jnp.where(counted, batch.mask.astype(batch.loss_mask.dtype), 0))

    step, state = compiled_step(tiny, Growing())
    losses = []
    for updates in (0, 3):
        now = state._replace(step=jnp.full_like(state.step, updates))
        losses.append(np.asarray(step(now, None)[1].task_loss))
    assert np.all(losses[0] == 0) and np.all(losses[1] > 0)


def test_an_update_is_a_function_of_seed_and_step_alone(tiny):
    step, state = compiled_step(tiny, tiny.Recall())
    first, a = step(state, None)
    second, b = step(first, None)
    _, again = step(first, None)
    np.testing.assert_array_equal(b.loss, again.loss)
    np.testing.assert_array_equal(second.step, [2, 2])
    # Same parameters, another step: another batch.
    _, other = step(state._replace(step=first.step), None)
    assert np.all(np.asarray(other.loss) != np.asarray(a.loss))


def test_a_seed_does_not_depend_on_the_other_seeds(tiny):
    pair = init_state(tiny.Model, optax.sgd(0.1), 3, 2)
    alone = init_state(tiny.Model, optax.sgd(0.1), 4, 1)
    second = jax.tree.map(lambda leaf: leaf[1:], pair)
    for a, b in zip(jax.tree.leaves(second), jax.tree.leaves(alone), strict=True):
        assert jnp.array_equal(a, b)
    assert not np.array_equal(pair.params["head"][...][0], pair.params["head"][...][1])


def test_a_seed_that_meets_nan_is_frozen_and_the_other_trains_on(tiny):
    optimizer = make_optimizer(learning_rate=0.1, steps=10)
    step, state = compiled_step(tiny, tiny.Recall(), optimizer=optimizer)
    state, _ = step(state, None)
    assert describe_fault(state, 3) is None
    state.params["head"][...] = state.params["head"][...].at[1, 0, 0].set(jnp.nan)
    poisoned = state
    for _ in range(3):
        state, _ = step(state, None)
    np.testing.assert_array_equal(state.step, [4, 1])
    np.testing.assert_array_equal(state.fault_step, [-1, 2])
    assert describe_fault(state, 3) == "seed 4: loss is not finite at update 2."
    for tree in ("params", "opt_state"):
        for old, new in zip(
            jax.tree.leaves(getattr(poisoned, tree)), jax.tree.leaves(getattr(state, tree)), strict=True
        ):
            np.testing.assert_array_equal(old[1], new[1])
            assert not np.array_equal(old[0], new[0])


def test_an_optimiser_whose_state_overflows_is_a_fault(tiny):
    """Adam's second moment would stay infinite and hold its parameter for good, while the loss stays finite."""
    optimizer = optax.GradientTransformation(
        lambda params: {"best": jnp.float32(jnp.inf), "moment": jnp.float32(1e38)},
        lambda updates, state, params=None: (
            jax.tree.map(jnp.zeros_like, updates),
            state | {"moment": 2 * state["moment"]},
        ),
    )
    step, state = compiled_step(tiny, tiny.Recall(), optimizer=optimizer)
    state, _ = step(state, None)  # "best" is infinite from the beginning
    assert describe_fault(state, 3) is None
    state, _ = step(state, None)
    assert describe_fault(state, 3) == "seed 3: optimiser state moment is not finite at update 2."


def test_a_fault_names_the_first_leaf_whose_gradient_is_not_finite(tiny):
    step, state = compiled_step(tiny, tiny.Recall(reads=True))
    batch = tiny.draw_numpy(0, 8)
    new, metrics = step(state, batch._replace(inputs=np.zeros_like(batch.inputs)))
    assert np.all(np.isfinite(metrics.loss))
    assert describe_fault(new, 3) == "seed 3: gradient of cell.weights[0] is not finite at update 1."
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(new.params))


def test_an_update_that_overflows_is_not_taken(tiny):
    step, state = compiled_step(tiny, tiny.Recall(), optimizer=optax.sgd(1e38), meta_weight=1e3)
    new, metrics = step(state, None)
    assert np.all(np.isfinite(metrics.grad_norm))
    assert describe_fault(new, 3) == "seed 3: updated cell.weights[0] is not finite at update 1."
    np.testing.assert_array_equal(new.params["head"][...], state.params["head"][...])


def test_fault_names_follow_the_order_of_the_leaves(tiny):
    class Wide(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Param(jnp.ones(i + 1)) for i in range(12)])
            self.pair = nnx.data((nnx.Param(jnp.ones(20)), nnx.Param(jnp.ones(21))))

    params = nnx.state(Wide(nnx.Rngs(0)), nnx.Param)
    names = [f"layers[{i}]" for i in range(12)] + ["pair[0]", "pair[1]"]
    state = TrainState(params, {"moment": jnp.ones(1)}, *[None] * 4, carry={"h": jnp.ones(1)})
    parameters = [*(f"gradient of {n}" for n in names), *(f"updated {n}" for n in names)]
    assert fault_names(state) == ["loss", *parameters, "carry h", "optimiser state moment"]
    assert [leaf.shape[0] for leaf in jax.tree.leaves(params)] == [*range(1, 13), 20, 21]


def test_a_model_with_state_that_is_not_trained_is_refused():
    with pytest.raises(ValueError, match="may hold nnx.Param only; make .* an nnx.Param"):
        split_model(lambda rngs: nnx.BatchNorm(3, rngs=rngs))
