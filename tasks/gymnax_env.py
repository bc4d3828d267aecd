"""Any environment of gymnax with discrete actions as a task; needs `pip install 'mnm_jax[rl]'`.

Shape letters: `T` time steps, `B` episodes, `D` numbers of an observation, `A` actions.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax._checks import check_choice, check_sizes
from mnm_jax.training import Batch
from tasks.actor_critic import ActorCritic
from tasks.environment import Environment, Transition
from tasks.timeline import time_line

Array = jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter(Environment):
    """An environment of gymnax with observations `[D]`: arrays become flat, numbers of a finite set one-hot.

    Args:
      wrapped: the environment.
      default_params: its parameters.
    """

    wrapped: Any
    default_params: Any = None

    @property
    def num_actions(self) -> int:  # type: ignore[override]
        return self.wrapped.action_space(self.default_params).n

    @cached_property
    def observation_features(self) -> int:  # type: ignore[override]
        return jax.eval_shape(self.reset_env, jax.random.key(0), self.default_params)[0].shape[0]

    def reset_env(self, key: Array, params: Any) -> tuple[Array, Any]:
        with loosely():
            observation, state = self.wrapped.reset_env(key, _as_arrays(params))
        return self._flat(observation), _as_arrays(state)

    def step_env(self, key: Array, state: Any, action: Array, params: Any) -> Transition:
        with loosely():
            found = self.wrapped.step_env(key, state, action, _as_arrays(params))
        observation, after, reward, terminated, info = found
        after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state)
        return self._flat(observation), after, jnp.asarray(reward, jnp.float32), jnp.asarray(terminated, bool), info

    def _flat(self, observation: Any) -> Array:
        count = getattr(self.wrapped.observation_space(self.default_params), "n", None)
        if count is not None:
            return jax.nn.one_hot(observation, count, dtype=jnp.float32)
        return jnp.ravel(jnp.asarray(observation, jnp.float32))


def _as_arrays(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


@contextlib.contextmanager
def loosely() -> Iterator[None]:
    """Lets gymnax mix dtypes and ranks where the caller's program forbids it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@dataclasses.dataclass(frozen=True, kw_only=True)
class GymnaxTask(ActorCritic):
    """Actor-critic in an environment of gymnax.

    Sequence: one episode of at most `T = episode_steps` steps; steps after its end are padding. Every episode draws its
    own start and begins with an empty memory. Metric: reward, summed over an episode.

    Args:
      env_id: name of the environment, such as "MemoryChain-bsuite".
      episode_steps: limit of steps of every episode, `T`; None: the environment's own.
      parameters: parameters of the environment by name, such as `{"memory_length": 8}`; the others keep their default.
      arguments: arguments of the environment's constructor by name, such as `{"maze_size": 9}`.
      discount: see `ActorCritic`, also for the other arguments.

    Raises:
      ImportError: gymnax is not installed.
      TypeError, ValueError: no such environment, parameter or argument; continuous actions; or as `ActorCritic` raises.

    References:
      Lange, gymnax: A JAX-based Reinforcement Learning Environment Library, 2022; version 1.0.
    """

    env_id: str = "MemoryChain-bsuite"
    episode_steps: int | None = None
    parameters: Mapping[str, Any] | tuple = ()
    arguments: Mapping[str, Any] | tuple = ()
    name: ClassVar[str] = "gymnax"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("parameters", "arguments"):
            value = getattr(self, field)
            if not isinstance(value, Mapping | tuple):
                raise TypeError(f"{field} must be a dictionary of settings by name, got {value!r}.")
            # A frozen dataclass of hashable fields is hashable; a config read from JSON has lists.
            pairs = sorted(value.items() if isinstance(value, Mapping) else value)
            object.__setattr__(self, field, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in pairs))
        if self.episode_steps is not None:
            check_sizes(episode_steps=self.episode_steps)
        _ = self.environment  # raises for wrong settings

    @cached_property
    def environment(self) -> Adapter:
        try:
            import gymnax
        except ImportError as error:
            raise ImportError(f"{error}; the task gymnax needs it: pip install 'mnm_jax[rl]'.") from error
        check_choice("env_id", self.env_id, gymnax.registered_envs)
        with loosely():
            wrapped, params = gymnax.make(self.env_id, **dict(self.arguments))
        given = dict(self.parameters)
        if "max_steps_in_episode" in given:
            raise ValueError("parameters must not have max_steps_in_episode: set episode_steps instead.")
        known = sorted({field.name for field in dataclasses.fields(params)} - {"max_steps_in_episode"})
        for key in given:
            check_choice(f"a key of parameters of {self.env_id}", key, known)
        steps = int(self.episode_steps or params.max_steps_in_episode)
        params = params.replace(**given, max_steps_in_episode=steps)
        if not hasattr(wrapped.action_space(params), "n"):
            raise ValueError(f"env_id must name an environment with discrete actions, got {self.env_id!r}.")
        return Adapter(wrapped, params)

    def tokens(self, batch: Batch, index: int) -> list[str]:
        """Returns the action of each step of episode `index` of a played batch."""
        mask = np.asarray(batch.mask[:, index])
        return [str(action) for action in np.asarray(batch.targets.actions[:, index])[mask]]

    def render(self, batch: Batch, index: int) -> str:
        """Returns actions and rewards of episode `index` of a played batch; a reward of 0 is left out."""
        tokens, rewards = self.tokens(batch, index), np.asarray(batch.targets.rewards[:, index])
        shown = [f"{reward:g}" if reward else "" for reward in rewards[: len(tokens)]]
        return time_line(tokens, shown, titles=("action", "reward"))
