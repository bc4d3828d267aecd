"""The maze as a task: find the reward by searching, then return to it from memory.

Shape letters: `T` time steps, `B` episodes, `A` actions.
"""

import dataclasses
import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax._checks import check_not_negative, check_sizes
from mnm_jax.training import Batch, Mean
from tasks.actor_critic import ActorCritic
from tasks.maze.environment import Maze, MazeParams
from tasks.maze.render import ARROWS, render_episode

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class MazeTask(ActorCritic):
    """Actor-critic in the `Maze`: search for the hidden reward, remember where it is, return after each teleport.

    Sequence: one episode of `T = episode_steps` steps; D = 17 numbers per observation, outputs are `A = 4` logits of
    the policy and the value.

    Meta-training: every episode draws a new cell for the reward, uniform over the free cells except the centre, and
    starts with an empty memory. One update minimises the actor-critic loss over a batch of whole episodes. Nothing
    about a reward's place outlives its episode, so the agent learns to search, to remember and to return.

    Metric: reward, summed over an episode (10 per visit); found, the share of episodes that reach the reward; again,
    visits after the first one. Evaluation episodes use keys that training does not use.

    Chance: an agent that draws actions uniformly earns 14.4 per episode at size 9 (`tasks.maze.oracle.random_score`).
    Oracle: shortest paths to the known reward cell earn 416.2 at size 9 (`tasks.maze.oracle.oracle_score`).

    Args:
      size: rows and columns of the maze, the outer wall included.
      penalty: penalty for walking into a wall.
      episode_steps: steps of every episode, `T`.
      discount: see `ActorCritic`, as are the other arguments.

    Raises:
      TypeError, ValueError: see `Maze` and `ActorCritic`; or episode_steps < 1; or a negative penalty.

    Examples:
      An agent that acts at random visits the reward three times. Arrows are moves, a star is a visit:

      >>> class Random:
      ...     def start(self, batch_size):
      ...         return ()
      ...     def step(self, carry, observations):
      ...         return carry, jnp.zeros((len(observations), 5))
      >>> task = MazeTask(size=5, episode_steps=20)
      >>> batch = task.play(Random(), task.sample(jax.random.key(0), 1))
      >>> batch.inputs.shape
      (20, 1, 17)
      >>> print(task.render(batch, 0))
      #####
      #  R#
      # S.#
      #   #
      #####
         2 >^*
         7 >^^^v>^*
         8 v^v<>>>^*
         3 v<^

    References:
      Munkhdalai et al., Metalearned Neural Memory, NeurIPS 2019, section 4.3; sizes and coefficients of Miconi et al.,
      Backpropamine, ICLR 2019.
    """

    size: int = 9
    penalty: float = 0.0
    episode_steps: int = 200
    name: ClassVar[str] = "maze"

    def __post_init__(self) -> None:
        super().__post_init__()
        Maze(self.size)
        check_sizes(episode_steps=self.episode_steps)
        check_not_negative(penalty=self.penalty)

    @cached_property
    def environment(self) -> Maze:
        return Maze(self.size)

    @property
    def params(self) -> MazeParams:
        return MazeParams(penalty=self.penalty, max_steps_in_episode=self.episode_steps)

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """Returns reward, found and again of a played batch; see the class."""
        rewarded = jnp.sum(batch.targets.rewards > 0, 0, dtype=batch.loss_mask.dtype)
        found, episodes = jnp.minimum(rewarded, 1), jnp.sum(batch.loss_mask[0])
        return {
            **super().metrics(logits, batch),
            "found": Mean(total=jnp.sum(found), count=episodes),
            "again": Mean(total=jnp.sum(rewarded - found), count=jnp.sum(found)),
        }

    def tokens(self, batch: Batch, index: int) -> list[str]:
        """Returns the move of each step of episode `index` as an arrow, with a star where it reached the reward."""
        actions, rewards = (np.asarray(x[:, index]) for x in (batch.targets.actions, batch.targets.rewards))
        return [ARROWS[a] + "*" * bool(r > 0) for a, r in zip(actions, rewards, strict=True)]

    def render(self, batch: Batch, index: int) -> str:
        """Returns episode `index` of a played batch as text; see `render_episode`."""
        states = jax.tree.map(lambda leaf: np.asarray(leaf[:, index]), batch.targets.states)
        rewards = np.asarray(batch.targets.rewards[:, index])
        return render_episode(self.environment, states.cell, states.reward_cell[0], rewards, self.tokens(batch, index))

    def draw_episode(self, batch: Batch, index: int, trace: Any, path: str | os.PathLike, title: str) -> None:
        """Draws episode `index` of a played batch as a film strip; needs matplotlib.

        Args:
          batch: a played batch.
          index: which episode of it.
          trace: `MemoryTrace` of this episode, leaves `[T, ...]`; None for an agent without a memory.
          path: the PNG file to write.
          title: the figure's title.
        """
        from tasks.maze.film import Episode, draw_film

        played = batch.targets
        episode = Episode(
            maze=self.environment,
            cells=np.asarray(played.states.cell[:, index]),
            rewards=np.asarray(played.rewards[:, index]),
            reward_cell=int(played.states.reward_cell[0, index]),
            rate=None if trace is None else np.asarray(trace.rate),
        )
        draw_film(episode, path, title)
