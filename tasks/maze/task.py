"""The maze as a task: find the reward once, then go straight to it."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax.training._task import Batch, Mean
from tasks.actor_critic import ActorCritic
from tasks.maze.environment import Maze, MazeParams
from tasks.maze.render import ARROWS, render_episode

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class MazeTask(ActorCritic):
    """Actor-critic in the `Maze`: explore until the reward is found, remember where, and go back after each teleport.

    Args:
      size: rows and columns. penalty: taken off for walking into a wall. episode_steps: of every episode.
      Others: see `ActorCritic`.

    Raises:
      ValueError: see `Maze` and `ActorCritic`; episode_steps < 1; a penalty that is negative.

    Source: Munkhdalai et al., NeurIPS 2019, section 4.3; sizes and coefficients of Miconi et al., 2019.
    """

    size: int = 9
    penalty: float = 0.0
    episode_steps: int = 200
    name: ClassVar[str] = "maze"

    def __post_init__(self):
        super().__post_init__()
        Maze(self.size)
        if self.episode_steps < 1:
            raise ValueError(f"episode_steps must be >= 1, got {self.episode_steps}.")
        if not 0 <= self.penalty < float("inf"):
            raise ValueError(f"penalty must be >= 0 and finite, got {self.penalty}.")

    @cached_property
    def environment(self) -> Maze:
        return Maze(self.size)

    @property
    def params(self) -> MazeParams:
        return MazeParams(penalty=self.penalty, max_steps_in_episode=self.episode_steps)

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """reward: summed over an episode. found: share of episodes in which it was reached. again: times after that."""
        rewarded = jnp.sum(batch.targets.rewards > 0, 0, dtype=batch.loss_mask.dtype)
        found, episodes = jnp.minimum(rewarded, 1), jnp.sum(batch.loss_mask[0])
        own = {"found": Mean(jnp.sum(found), episodes), "again": Mean(jnp.sum(rewarded - found), jnp.sum(found))}
        return {**super().metrics(logits, batch), **own}

    def tokens(self, batch: Batch, index: int) -> list[str]:
        """The move of each step as an arrow, and a star where the reward was reached."""
        actions, rewards = (np.asarray(x[:, index]) for x in (batch.targets.actions, batch.targets.rewards))
        return [ARROWS[a] + "*" * bool(r > 0) for a, r in zip(actions, rewards, strict=True)]

    def render(self, batch: Batch, index: int) -> str:
        """Episode `index` of a played batch as text, see `render_episode`."""
        states = jax.tree.map(lambda leaf: np.asarray(leaf[:, index]), batch.targets.states)
        rewards = np.asarray(batch.targets.rewards[:, index])
        return render_episode(self.environment, states.cell, states.reward_cell[0], rewards, self.tokens(batch, index))
