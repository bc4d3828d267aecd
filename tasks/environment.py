"""The interface of reinforcement-learning environments: pure functions of explicit state, as in gymnax 1.0.

Shape letter: `D` numbers of an observation.
"""

import abc
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

Array = jax.Array
Transition = tuple[Array, Any, Array, Array, dict[str, Any]]  # observation, state, reward, terminated, info


class Environment(abc.ABC):
    """An environment of one episode, with discrete actions and observations `[D]`; use `jax.vmap` for a batch.

    A subclass defines `reset_env` and `step_env`. Its state has a field `time`, the steps taken in the episode.

    Attributes:
      observation_features: `D`.
      num_actions: number of actions; an action is one of 0, ..., num_actions - 1.

    References:
      Lange, gymnax 1.0: `step` returns six values, separates "terminated" from "truncated", and resets automatically.
    """

    observation_features: ClassVar[int]
    num_actions: ClassVar[int]

    @property
    @abc.abstractmethod
    def default_params(self) -> Any:
        """Parameters of the environment, which JAX may trace; `max_steps_in_episode` is one of them."""

    @abc.abstractmethod
    def reset_env(self, key: Array, params: Any) -> tuple[Array, Any]:
        """Returns (observation, state) at the start of an episode."""

    @abc.abstractmethod
    def step_env(self, key: Array, state: Any, action: Array, params: Any) -> Transition:
        """Returns (observation, state, reward, terminated, info) after an action; ignores the limit of steps."""

    def reset(self, key: Array, params: Any = None) -> tuple[Array, Any]:
        """Returns (observation, state) at the start of an episode. Consumes the key."""
        return self.reset_env(key, self.default_params if params is None else params)

    def step(
        self, key: Array, state: Any, action: Array, params: Any = None
    ) -> tuple[Array, Any, Array, Array, Array, dict[str, Any]]:
        """Takes one step, and starts the next episode if this one ends. Consumes the key.

        Returns:
          (observation, state, reward, terminated, truncated, info). An episode ends by itself (terminated) or at its
          limit of steps (truncated); observation and state then belong to the next episode, and
          `info["final_observation"]` is the last observation of the old one.
        """
        params = self.default_params if params is None else params
        step_key, reset_key = jax.random.split(key)
        seen, after, reward, terminated, info = self.step_env(step_key, state, action, params)
        truncated = after.time >= params.max_steps_in_episode
        first, initial = self.reset_env(reset_key, params)

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(terminated | truncated, new, old)

        info = {**info, "terminated": terminated, "truncated": truncated, "final_observation": seen}
        return choose(first, seen), jax.tree.map(choose, initial, after), reward, terminated, truncated, info
