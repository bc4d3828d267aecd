"""What an environment of reinforcement learning is: pure functions of explicit state, after the contract of gymnax 1.0.

Shape letter: `D` numbers in an observation.
"""

import abc
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

Array = jax.Array


class Environment(abc.ABC):
    """An environment with `num_actions` discrete actions and observations `[D]`; of one episode: batch it by `vmap`.

    observation_features: `D`. num_actions: actions are 0, ..., num_actions - 1.
    default_params: numbers that may be traced, `max_steps_in_episode` among them.

    A subclass writes `reset_env` and `step_env`; its state needs a field `time`, steps taken in the episode.

    Source: the interface of gymnax 1.0 (six values a step, terminated and truncated apart, resets by itself).
    """

    observation_features: ClassVar[int]
    num_actions: ClassVar[int]

    @property
    @abc.abstractmethod
    def default_params(self) -> Any: ...

    @abc.abstractmethod
    def reset_env(self, key: Array, params: Any) -> tuple[Array, Any]:
        """(observation, state) at the start of an episode."""

    @abc.abstractmethod
    def step_env(
        self, key: Array, state: Any, action: Array, params: Any
    ) -> tuple[Array, Any, Array, Array, dict[str, Any]]:
        """(observation, state, reward, terminated, info) after an action; the limit of steps is not looked at."""

    def reset(self, key: Array, params: Any = None) -> tuple[Array, Any]:
        """(observation, state) at the start of an episode; the key is used up."""
        return self.reset_env(key, self.default_params if params is None else params)

    def step(
        self, key: Array, state: Any, action: Array, params: Any = None
    ) -> tuple[Array, Any, Array, Array, Array, dict[str, Any]]:
        """(observation, state, reward, terminated, truncated, info) after an action; the key is used up.

        When the episode ends, by itself (terminated) or at its limit of steps (truncated), observation and state are
        those of the next one, and `info["final_observation"]` is the last one of the old.
        """
        params = self.default_params if params is None else params
        step_key, reset_key = jax.random.split(key)
        seen, after, reward, terminated, info = self.step_env(step_key, state, action, params)
        truncated = after.time >= params.max_steps_in_episode
        first, fresh = self.reset_env(reset_key, params)
        choose = lambda new, old: jnp.where(terminated | truncated, new, old)  # noqa: E731
        info = {**info, "terminated": terminated, "truncated": truncated, "final_observation": seen}
        return choose(first, seen), jax.tree.map(choose, fresh, after), reward, terminated, truncated, info
