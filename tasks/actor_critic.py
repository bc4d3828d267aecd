"""Reinforcement learning as a task: an agent plays the batch that it then learns from (advantage actor-critic).

Shape letters: `T` time steps, `B` episodes, `D` numbers in an observation, `A` actions.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax.training._task import Batch, Mean
from tasks.environment import Environment
from tasks.sampling import draw_batches

Array = jax.Array


class Played(NamedTuple):
    """What an agent did in a batch of episodes, and what came of it.

    actions: `[T, B]`. rewards: r `[T, B]`. returns: R `[T, B]`. baseline: V `[T, B]`, as a number, what returns are
    compared with. states: of the environment before each action, leaves `[T, B, ...]`.
    """

    actions: Array
    rewards: Array
    returns: Array
    baseline: Array
    states: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorCritic(abc.ABC):
    """A task whose batches are played by the model that learns from them: one update a batch of whole episodes.

        R_t = r_t + discount R_{t+1},  R_T = 0
        loss = mean over steps and episodes of  -log pi(a_t) (R_t - V_t)  +  value_weight (R_t - V_t)^2
               +  concentration_weight sum_a pi(a)^2

    R_t - V_t counts as a number in the first term. The model puts out `A` logits of pi and then V. `sample` draws the
    chance in a batch of episodes, as random keys; `play` lets a model act on it and returns observations, actions and
    returns: a batch like any other, so that the gradient goes back through whole episodes in any execution form.

    Args:
      discount: gamma. value_weight, concentration_weight: of the loss; the last keeps the policy from settling early.
      first_baseline: compare the returns of all episodes with V of the first one of the batch, as a published program
        does; for comparison only.
      evaluation_batches: batches in each evaluation set.

    Raises:
      ValueError: a discount outside of [0, 1], a negative weight, evaluation_batches < 1.

    Source: Mnih et al., 2016 (A3C), with the coefficients of Miconi et al., 2019 (Backpropamine).
    """

    discount: float = 0.9
    value_weight: float = 0.1
    concentration_weight: float = 0.03
    first_baseline: bool = False
    evaluation_batches: int = 4

    loader = None

    def __post_init__(self):
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount must be from 0 to 1, got {self.discount}.")
        for name in ("value_weight", "concentration_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be >= 0 and finite, got {getattr(self, name)}.")
        if self.evaluation_batches < 1:
            raise ValueError(f"evaluation_batches must be >= 1, got {self.evaluation_batches}.")

    @property
    @abc.abstractmethod
    def environment(self) -> Environment: ...

    @property
    def params(self) -> Any:
        """Of the environment; `max_steps_in_episode` is a plain number."""
        return self.environment.default_params

    @property
    def input_features(self) -> int:
        return self.environment.observation_features

    @property
    def output_features(self) -> int:
        return self.environment.num_actions + 1

    def encoder(self, rngs: nnx.Rngs) -> Callable[[Array], Array]:
        """Observations as they are."""
        del rngs
        return lambda inputs: inputs

    def sample(self, key: Array, batch_size: int, step: Array | None = None) -> Batch:
        """A batch yet to be played: inputs are the random keys of every step, `[T, B, 2]`; pure."""
        del step
        shape = (self.params.max_steps_in_episode, batch_size)
        keys = jax.random.key_data(jax.random.split(key, shape))
        return Batch(keys, jnp.zeros(shape, jnp.int32), jnp.ones(shape), jnp.ones(shape, bool))

    def play(self, model: Any, batch: Batch) -> Batch:
        """The batch that a model makes of the chance drawn by `sample`: it acts by its own policy.

        inputs: observations `[T, B, D]`; targets: `Played`. What follows the end of an episode is padding.

        Args:
          model: has `start(B) -> carry` and `step(carry, observations [B, D]) -> (carry, logits [B, A + 1])`.
        """
        act = jax.vmap(self.environment.step_env, (0, 0, 0, None))
        action_keys, step_keys, reset_keys = _split_each(jax.random.wrap_key_data(batch.inputs), 3)
        gumbel = partial(jax.random.gumbel, shape=(self.environment.num_actions,))
        noise = jax.vmap(jax.vmap(gumbel))(action_keys)
        observations, states = jax.vmap(self.environment.reset_env, (0, None))(reset_keys[0], self.params)

        def step(now: tuple, chance: tuple) -> tuple[tuple, tuple]:
            carry, observations, states, going = now
            noise, keys = chance
            carry, logits = model.step(carry, observations)
            actions = jnp.argmax(logits[:, :-1] + noise.astype(logits.dtype), -1)  # a draw from the softmax
            seen, after, rewards, terminated, _ = act(keys, states, actions, self.params)
            done = (observations, states, actions, rewards, logits[:, -1], going)
            return (carry, seen, after, going & ~terminated), done

        start = (model.start(batch.mask.shape[1]), observations, states, jnp.ones(batch.mask.shape[1], bool))
        _, done = jax.lax.scan(step, start, (noise, step_keys))
        observations, states, actions, rewards, values, going = jax.lax.stop_gradient(done)
        rewards = jnp.where(going, rewards, 0)
        returns = discounted_returns(rewards, self.discount)
        baseline = jnp.broadcast_to(values[:, :1], values.shape) if self.first_baseline else values
        played = Played(actions, rewards, returns, baseline, states)
        return Batch(observations, played, going.astype(observations.dtype), going)

    def evaluations(self, split: str, batch_size: int) -> Mapping[str, Callable[[], Iterable[Batch]]]:
        """Episodes of chance that training does not meet, yet to be played."""
        seed = {"valid": 1, "test": 2}[split]
        return {"": partial(draw_batches, self, seed, self.evaluation_batches, batch_size)}

    def loss(self, logits: Array, batch: Batch) -> Mean:
        """The actor-critic loss of a played batch, summed over its steps; logits `[T, B, A + 1]`."""
        played, values = batch.targets, logits[..., -1]
        log_policy = jax.nn.log_softmax(logits[..., :-1])
        chosen = jnp.take_along_axis(log_policy, played.actions[..., None], -1)[..., 0]
        policy_part = -chosen * (played.returns - played.baseline)
        value_part = self.value_weight * jnp.square(played.returns - values)
        concentration = self.concentration_weight * jnp.sum(jnp.exp(2 * log_policy), -1)
        terms = policy_part + value_part + concentration
        return Mean(jnp.sum(jnp.where(batch.loss_mask > 0, terms, 0)), jnp.sum(batch.loss_mask))

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """reward: summed over an episode, mean over episodes."""
        del logits
        episodes = jnp.sum(batch.loss_mask[0])
        return {"reward": Mean(jnp.sum(batch.targets.rewards), episodes)}

    @abc.abstractmethod
    def tokens(self, batch: Batch, index: int) -> list[str]:
        """What was done at each step of episode `index` of a played batch, as short text."""

    @abc.abstractmethod
    def render(self, batch: Batch, index: int) -> str:
        """Episode `index` of a played batch as text."""


def discounted_returns(rewards: Array, discount: float) -> Array:
    """R_t = r_t + discount R_{t+1}, with R_T = 0; rewards and returns `[T, ...]`.

    >>> discounted_returns(jnp.array([1.0, 0.0, 2.0]), 0.5)
    Array([1.5, 1. , 2. ], dtype=float32)
    """

    def add(later: Array, reward: Array) -> tuple[Array, Array]:
        total = reward + discount * later
        return total, total

    return jax.lax.scan(add, jnp.zeros_like(rewards[0]), rewards, reverse=True)[1]


def _split_each(keys: Array, count: int) -> tuple[Array, ...]:
    """Every key of an array of keys split: `count` arrays of its shape."""
    each = jax.vmap(partial(jax.random.split, num=count))(keys.reshape(-1))
    return tuple(each[:, index].reshape(keys.shape) for index in range(count))
