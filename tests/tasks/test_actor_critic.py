"""Tests actor-critic: numbers worked by hand, playing, and probe environments with known solutions."""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import RNNCell
from mnm_jax.training import Batch, SequenceModel, TrainConfig, read_metrics, train
from tasks.actor_critic import ActorCritic, Played, discounted_returns
from tasks.environment import Environment
from tasks.maze import MazeTask

T, B, A = 4, 3, 2


class Params(NamedTuple):
    max_steps_in_episode: int


class State(NamedTuple):
    time: jax.Array
    shown: jax.Array  # +1 or -1, drawn for the episode


@dataclasses.dataclass(frozen=True)
class Probe(Environment):
    """Observes a random sign, at the first step only, and the time; rewards follow `kind`."""

    kind: str
    observation_features: ClassVar[int] = 2
    num_actions: ClassVar[int] = A

    @property
    def default_params(self):
        return Params(2)

    def reset_env(self, key, params):
        state = State(jnp.int32(0), jax.random.rademacher(key, (), jnp.float32))
        return self._observe(state), state

    def step_env(self, key, state, action, params):
        chosen, last = 2 * action.astype(jnp.float32) - 1, state.time == 1
        reward = {
            "constant": jnp.float32(1),
            "observed": jnp.where(last, 0, state.shown),
            "later": jnp.where(last, jnp.float32(1), 0),
            "acted": chosen,
            "remembered": jnp.where(last, chosen * state.shown, 0),
            "ended": jnp.float32(1),
        }[self.kind]
        after = state._replace(time=state.time + 1)
        return self._observe(after), after, reward, jnp.bool_(self.kind == "ended"), {}

    def _observe(self, state):
        return jnp.stack([jnp.where(state.time == 0, state.shown, 0), state.time.astype(jnp.float32)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeTask(ActorCritic):
    kind: str
    name: ClassVar[str] = "probe"

    @property
    def environment(self):
        return Probe(self.kind)

    def tokens(self, batch, index):
        return [str(action) for action in batch.targets.actions[:, index]]

    def render(self, batch, index):
        return " ".join(self.tokens(batch, index))


def make_model(task, features=16):
    def make(rngs):
        cell = RNNCell(task.input_features, features, rngs=rngs)
        return SequenceModel(task.encoder(rngs), cell, task.output_features, rngs=rngs)

    return make


@functools.partial(jax.jit, static_argnums=(0, 2))
def play(task, model, episodes, seed=0):
    """Returns (logits, batch) of episodes that the model plays."""
    batch = task.play(model, task.sample(jax.random.key(seed), episodes))
    return model(batch.inputs, mask=batch.mask).logits, batch


def learn(kind, tmp_path, **settings):
    """Returns (logits, played batch) of a trained model on episodes that it plays."""
    task = ProbeTask(kind=kind, evaluation_batches=1, **settings)
    make = make_model(task)
    config = TrainConfig(steps=400, batch_size=32, learning_rate=0.01, schedule="cosine", eval_every=400)
    result = train(task, make, config, tmp_path, devices=jax.local_devices()[:1])
    model = nnx.merge(result.graphdef, jax.tree.map(lambda leaf: np.asarray(leaf)[0], result.params))
    return jax.device_get(play(task, model, 64, 7))


@pytest.mark.slow
def test_a_constant_reward_is_expected_at_each_of_two_steps(tmp_path):
    logits, _ = learn("constant", tmp_path)
    np.testing.assert_allclose(logits[..., -1], np.broadcast_to([[1.9], [1.0]], (2, 64)), atol=0.02)


@pytest.mark.slow
def test_the_value_follows_what_is_seen(tmp_path):
    logits, batch = learn("observed", tmp_path)
    assert set(np.unique(batch.targets.rewards[0])) == {-1, 1}
    np.testing.assert_allclose(logits[0, :, -1], batch.targets.rewards[0], atol=0.02)
    np.testing.assert_allclose(logits[1, :, -1], 0, atol=0.02)


def test_a_reward_a_step_later_is_discounted(tmp_path):
    logits, _ = learn("later", tmp_path, discount=0.7)
    np.testing.assert_allclose(logits[0, :, -1], 0.7, atol=0.02)
    np.testing.assert_allclose(logits[1, :, -1], 1, atol=0.02)


@pytest.mark.slow
def test_the_better_action_is_found(tmp_path):
    logits, _ = learn("acted", tmp_path, concentration_weight=0.0)
    np.testing.assert_allclose(jax.nn.softmax(logits[..., :-1])[..., 1], 1, atol=0.03)
    np.testing.assert_allclose(logits[1, :, -1], 1, atol=0.05)


@pytest.mark.slow
def test_several_devices_play_and_learn_what_one_does(tmp_path):
    task, config = ProbeTask(kind="remembered"), TrainConfig(steps=3, batch_size=4, learning_rate=0.1, log_every=1)
    lines = []
    for devices, parallel in ((1, "jit"), (2, "jit"), (2, "pmap")):
        workdir = tmp_path / f"{devices}{parallel}"
        train(task, make_model(task, 4), config, workdir, devices=jax.local_devices()[:devices], parallel=parallel)
        lines.append([line["train/loss"] for line in read_metrics(workdir) if "train/loss" in line])
    np.testing.assert_allclose(lines[1:], [lines[0]] * 2, rtol=1e-5)
    assert len(lines[0]) == 3 and len({loss for (loss,) in lines[0]}) == 3


def test_what_was_seen_a_step_before_decides_the_action(tmp_path):
    logits, batch = learn("remembered", tmp_path, concentration_weight=0.0)
    assert np.mean(batch.targets.rewards[1]) == 1
    assert np.all((logits[1, :, 1] > logits[1, :, 0]) == (batch.inputs[0, :, 0] > 0))


@pytest.fixture
def task():
    return ProbeTask(kind="constant")


def by_hand(task, logits, batch):
    """Returns the loss, computed by a loop over steps and episodes."""
    total, count = 0.0, 0
    for t in range(T):
        for b in range(B):
            if not batch.loss_mask[t, b]:
                continue
            policy = np.exp(logits[t, b, :A]) / np.exp(logits[t, b, :A]).sum()
            value, played = logits[t, b, A], batch.targets
            total -= np.log(policy[played.actions[t, b]]) * (played.returns[t, b] - played.baseline[t, b])
            total += task.value_weight * (played.returns[t, b] - value) ** 2
            total += task.concentration_weight * (policy**2).sum()
            count += 1
    return total, count


def random_batch():
    draws = np.random.default_rng(0)
    rewards, baseline = draws.normal(size=(2, T, B))
    mask = np.ones((T, B))
    mask[2:, 1] = 0
    rewards = rewards * mask
    played = Played(draws.integers(0, A, (T, B)), rewards, np.asarray(discounted_returns(rewards, 0.9)), baseline, ())
    return draws.normal(size=(T, B, A + 1)), Batch(np.zeros((T, B, 2)), played, mask, mask > 0)


def test_the_loss_is_the_one_written_down(task, x64):
    logits, batch = random_batch()
    loss = jax.jit(task.loss)(logits, batch)
    total, count = by_hand(task, logits, batch)
    assert float(loss.total) == pytest.approx(total, rel=1e-12) and loss.count == count == 10
    gradient = np.asarray(jax.jit(jax.grad(lambda logits: task.loss(logits, batch).total))(logits))
    for place in np.ndindex(logits.shape):
        shift = np.zeros_like(logits)
        shift[place] = 1e-6
        slope = (by_hand(task, logits + shift, batch)[0] - by_hand(task, logits - shift, batch)[0]) / 2e-6
        assert float(gradient[place]) == pytest.approx(slope, abs=1e-8)


def test_returns_and_reward_by_hand(task, x64):
    _, batch = random_batch()
    rewards, returns = batch.targets.rewards, np.zeros((T, B))
    for t in reversed(range(T)):
        returns[t] = rewards[t] + (0.9 * returns[t + 1] if t + 1 < T else 0)
    np.testing.assert_allclose(batch.targets.returns, returns, rtol=1e-12)
    reward = task.metrics(None, batch)["reward"]
    assert float(reward.value) == pytest.approx(rewards.sum() / B)


def test_the_model_plays_what_it_is_then_trained_on():
    """Observations, states and rewards follow from the actions, step by step; V is that of the model unrolled."""
    task = MazeTask(size=5, episode_steps=12, penalty=0.5)
    logits, batch = jax.device_get(play(task, make_model(task)(nnx.Rngs(0)), 6))
    played, states, maze = batch.targets, batch.targets.states, task.environment
    observe = jax.jit(lambda state: maze._observe(state, task.params))
    np.testing.assert_allclose(logits[..., -1], played.baseline, rtol=1e-5)
    assert np.all(states.cell[0] == maze.centre) and np.all(np.diff(states.reward_cell, axis=0) == 0)
    for t, b in np.ndindex(11, 6):
        now = jax.tree.map(lambda leaf, t=t, b=b: leaf[t, b], states)
        reached = maze.next_cells[now.cell, played.actions[t, b]]
        found, stayed = reached == now.reward_cell, reached == now.cell
        assert float(played.rewards[t, b]) == 10 * found - 0.5 * stayed
        after = jax.tree.map(lambda leaf, t=t, b=b: leaf[t + 1, b], states)
        assert (after.cell != now.reward_cell) if found else (after.cell == reached)
        np.testing.assert_allclose(batch.inputs[t + 1, b], observe(after), rtol=1e-6)
    assert np.any(played.rewards > 0) and np.any(played.rewards < 0)


def test_actions_are_drawn_from_the_policy(task):
    class Fixed:
        def start(self, batch_size):
            return jnp.zeros(())

        def step(self, carry, observations):
            return carry, jnp.broadcast_to(jnp.log(jnp.array([0.2, 0.8, 1.0])), (len(observations), A + 1))

    batch = jax.jit(lambda key: task.play(Fixed(), task.sample(key, 5000)))(jax.random.key(0))
    # 10,000 draws: a standard deviation of 0.004.
    assert np.mean(batch.targets.actions) == pytest.approx(0.8, abs=0.02)


def test_nothing_counts_after_the_end_of_an_episode():
    task = ProbeTask(kind="ended")
    _, batch = play(task, make_model(task)(nnx.Rngs(0)), B)
    np.testing.assert_array_equal(batch.mask, [[True] * B, [False] * B])
    np.testing.assert_array_equal(batch.targets.rewards, [[1] * B, [0] * B])
    np.testing.assert_array_equal(batch.targets.returns, batch.targets.rewards)


def test_the_baseline_may_be_that_of_the_first_episode():
    own, first = (ProbeTask(kind="observed", first_baseline=first) for first in (False, True))
    model = make_model(own)(nnx.Rngs(0))
    values, shared = (np.asarray(play(task, model, B)[1].targets.baseline) for task in (own, first))
    np.testing.assert_array_equal(shared, np.broadcast_to(values[:, :1], values.shape))
    assert np.ptp(values[0]) > 0
