"""Reinforcement learning as a task: an agent plays the batch that it then learns from (advantage actor-critic).

Shape letters: `T` time steps, `B` episodes, `D` numbers of an observation, `A` actions.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax._checks import check_flags, check_fraction, check_not_negative, check_sizes
from mnm_jax.training import Batch, Mean
from tasks.arguments import unwrap_numbers
from tasks.environment import Environment
from tasks.sampling import evaluation_set

Array = jax.Array


class Agent(Protocol):
    """A model that can be run step by step, such as `mnm_jax.training.SequenceModel`."""

    def start(self, batch_size: int) -> Any:
        """Returns the carry at the start of an episode."""

    def step(self, carry: Any, observations: Array) -> tuple[Any, Array]:
        """Returns (carry, logits `[B, A + 1]`) for observations `[B, D]`; the last output is the value V."""


class Played(NamedTuple):
    """The record of a batch of episodes: the targets of a played batch.

    Attributes:
      actions: action of each step, `[T, B]` integers.
      rewards: reward r_t of each step, `[T, B]`.
      returns: return R_t from each step on, `[T, B]`.
      baseline: value V_t that returns are compared with, `[T, B]`; a constant for the gradient.
      states: state of the environment before each action, leaves `[T, B, ...]`.
    """

    actions: Array
    rewards: Array
    returns: Array
    baseline: Array
    states: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorCritic(abc.ABC):
    """A task whose batches are played by the model that learns from them: one update per batch of whole episodes.

        R_t = r_t + discount R_{t+1},  R_T = 0
        loss = mean over steps and episodes of  -log pi(a_t) (R_t - V_t)  +  value_weight (R_t - V_t)^2
               +  concentration_weight sum_a pi(a)^2

    The advantage R_t - V_t is a constant in the first term. The model's outputs are `A` logits of the policy pi and
    then V. `sample` draws the random keys of a batch of episodes; `play` runs a model on them and returns observations,
    actions and returns. From there it is a batch like any other, so the gradient passes through whole episodes in any
    execution form.

    A subclass defines `name`, `environment`, `tokens` and `render`; see `tasks.maze.MazeTask`.

    Args:
      discount: gamma, in [0, 1].
      value_weight: weight of the value's error in the loss.
      concentration_weight: weight of sum_a pi(a)^2, which keeps the policy from becoming deterministic early.
      first_baseline: compares the returns of all episodes with V of the first episode of the batch, as a published
        program does; for comparison only. With `parallel="pmap"` it is the first episode of each device.
      evaluation_batches: batches of each evaluation set.

    Raises:
      TypeError, ValueError: an argument of another type, discount outside [0, 1], a negative weight, or
        evaluation_batches < 1.

    References:
      Mnih et al., Asynchronous Methods for Deep Reinforcement Learning, ICML 2016 (A3C); coefficients of Miconi et al.,
      Backpropamine, ICLR 2019.
    """

    discount: float = 0.9
    value_weight: float = 0.1
    concentration_weight: float = 0.03
    first_baseline: bool = False
    evaluation_batches: int = 4

    loader = None

    def __post_init__(self) -> None:
        unwrap_numbers(self)
        check_fraction(discount=self.discount)
        check_not_negative(value_weight=self.value_weight, concentration_weight=self.concentration_weight)
        check_flags(first_baseline=self.first_baseline)
        check_sizes(evaluation_batches=self.evaluation_batches)

    @property
    @abc.abstractmethod
    def environment(self) -> Environment:
        """The environment."""

    @property
    def params(self) -> Any:
        """Parameters of the environment; `max_steps_in_episode`, which is `T`, must be a Python integer."""
        return self.environment.default_params

    @property
    def input_features(self) -> int:
        """`D`."""
        return self.environment.observation_features

    @property
    def output_features(self) -> int:
        """`A + 1`: logits of the policy, and the value."""
        return self.environment.num_actions + 1

    def encoder(self, rngs: nnx.Rngs) -> Callable[[Array], Array]:
        """Returns the identity."""
        del rngs
        return lambda inputs: inputs

    def sample(self, key: Array, batch_size: int, step: Array | int | None = None) -> Batch:
        """Returns a batch to be played: its inputs are the random keys of every step, `[T, B, 2]`."""
        del step
        shape = (self.params.max_steps_in_episode, batch_size)
        keys = jax.random.key_data(jax.random.split(key, shape))
        return Batch(
            inputs=keys,
            targets=jnp.zeros(shape, jnp.int32),
            loss_mask=jnp.ones(shape),
            mask=jnp.ones(shape, bool),
        )

    def play(self, model: Agent, batch: Batch) -> Batch:
        """Plays episodes: the model acts by its own policy, with the random keys of a batch of `sample`.

        Args:
          model: the agent.
          batch: a batch of `sample`.

        Returns:
          The played batch: inputs are observations `[T, B, D]`, targets are `Played`. Steps after the end of an episode
          are padding.
        """
        act = jax.vmap(self.environment.step_env, (0, 0, 0, None))
        split = jax.vmap(jax.vmap(partial(jax.random.split, num=3), out_axes=1), out_axes=1)
        action_keys, step_keys, reset_keys = split(jax.random.wrap_key_data(batch.inputs))
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
        played = Played(
            actions=actions,
            rewards=rewards,
            returns=discounted_returns(rewards, self.discount),
            baseline=jnp.broadcast_to(values[:, :1], values.shape) if self.first_baseline else values,
            states=states,
        )
        return Batch(inputs=observations, targets=played, loss_mask=going.astype(observations.dtype), mask=going)

    def evaluations(self, split: str, batch_size: int) -> Mapping[str, Callable[[], Iterable[Batch]]]:
        """Returns one set, "", of batches to be played, with keys that training does not use."""
        return {"": evaluation_set(self, split, self.evaluation_batches, batch_size)}

    def loss(self, logits: Array, batch: Batch) -> Mean:
        """Returns the actor-critic loss of a played batch; logits `[T, B, A + 1]`."""
        played, values = batch.targets, logits[..., -1]
        log_policy = jax.nn.log_softmax(logits[..., :-1])
        chosen = jnp.take_along_axis(log_policy, played.actions[..., None], -1)[..., 0]
        policy_part = -chosen * (played.returns - played.baseline)
        value_part = self.value_weight * jnp.square(played.returns - values)
        concentration = self.concentration_weight * jnp.sum(jnp.exp(2 * log_policy), -1)
        terms = policy_part + value_part + concentration
        return Mean(total=jnp.sum(jnp.where(batch.loss_mask > 0, terms, 0)), count=jnp.sum(batch.loss_mask))

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """Returns reward: summed over an episode, mean over episodes."""
        del logits
        return {"reward": Mean(total=jnp.sum(batch.targets.rewards), count=jnp.sum(batch.loss_mask[0]))}

    @abc.abstractmethod
    def tokens(self, batch: Batch, index: int) -> list[str]:
        """Returns a short text per step for episode `index` of a played batch, such as the action."""

    @abc.abstractmethod
    def render(self, batch: Batch, index: int) -> str:
        """Returns episode `index` of a played batch as text."""


def discounted_returns(rewards: Array, discount: float) -> Array:
    """Returns R_t = r_t + discount R_{t+1} with R_T = 0; rewards and returns are `[T, ...]`.

    Examples:
      >>> discounted_returns(jnp.array([1.0, 0.0, 2.0]), 0.5)
      Array([1.5, 1. , 2. ], dtype=float32)
    """

    def add(later: Array, reward: Array) -> tuple[Array, Array]:
        total = reward + discount * later
        return total, total

    return jax.lax.scan(add, jnp.zeros_like(rewards[0]), rewards, reverse=True)[1]
