"""The maze: walls, pillars, a reward that nobody sees, and a teleport when it is reached.

Shape letter: `F` free cells.
"""

import dataclasses
from functools import cached_property
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.environment import Environment

Array = jax.Array

MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])  # of (row, column): up, down, left, right


class MazeParams(NamedTuple):
    """reward: for reaching its cell. penalty: taken off for walking into a wall. max_steps_in_episode: its limit."""

    reward: float = 10.0
    penalty: float = 0.0
    max_steps_in_episode: int = 200


class MazeState(NamedTuple):
    """cell, reward_cell: numbers of free cells. time: steps taken. last_action: -1 at first. last_reward: raw."""

    cell: Array
    reward_cell: Array
    time: Array
    last_action: Array
    last_reward: Array


@dataclasses.dataclass(frozen=True)
class Maze(Environment):
    """A grid of `size x size` cells in which one cell, another in every episode, rewards whoever reaches it.

        #########
        #       #
        # # # # #
        #       #
        # #   # #     size 9: a wall around, a pillar at every even row and column, none at the centre
        #       #
        # # # # #
        #       #
        #########

    An episode starts at the centre. The reward's cell is drawn from the free cells other than the centre, stays for
    the episode and is not shown. Reaching it pays, and moves the agent to a free cell drawn from all but the reward's.
    A step into a wall leaves the agent where it is. Episodes end at their limit of steps, never before.

    The observation, 17 numbers: the 3 x 3 cells around the agent, row by row (1: wall, 0: free), an unused 0, a 1, the
    share of the episode's steps that is over, the last reward (not scaled), and the last action as one of four.

    Args:
      size: rows and columns, the outer wall included.

    Raises:
      ValueError: size is even or below 5.

    Source: the maze of Miconi et al., 2019 (Backpropamine), as the memory paper used it; the interface is gymnax 1.0's.
    """

    size: int = 9
    observation_features: ClassVar[int] = 17
    num_actions: ClassVar[int] = 4

    def __post_init__(self):
        if not isinstance(self.size, int) or self.size < 5 or self.size % 2 == 0:
            raise ValueError(f"size must be an odd number >= 5, so that there is a centre, got {self.size!r}.")

    @property
    def default_params(self) -> MazeParams:
        return MazeParams()

    @cached_property
    def walls(self) -> np.ndarray:
        """`[size, size]` bool."""
        walls = np.ones((self.size, self.size), bool)
        walls[1:-1, 1:-1] = False
        walls[::2, ::2] = True
        walls[self.size // 2, self.size // 2] = False
        return walls

    @cached_property
    def cells(self) -> np.ndarray:
        """`[F, 2]` row and column of every free cell, in the order of their numbers."""
        return np.argwhere(~self.walls)

    @cached_property
    def centre(self) -> int:
        """The number of the cell where an episode starts."""
        return int(np.flatnonzero((self.cells == self.size // 2).all(1))[0])

    @cached_property
    def next_cells(self) -> np.ndarray:
        """`[F, 4]` the cell that each action leads to; the same one where a wall is in the way."""
        numbers = np.full(self.walls.shape, -1)
        numbers[tuple(self.cells.T)] = np.arange(len(self.cells))
        reached = numbers[tuple(np.moveaxis(self.cells[:, None] + MOVES, -1, 0))]
        return np.where(reached < 0, np.arange(len(self.cells))[:, None], reached)

    @cached_property
    def views(self) -> np.ndarray:
        """`[F, 9]` what is seen around each free cell, 1 for a wall."""
        around = np.array([(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)])
        return self.walls[tuple(np.moveaxis(self.cells[:, None] + around, -1, 0))].astype(np.float32)

    def reset_env(self, key: Array, params: MazeParams) -> tuple[Array, MazeState]:
        centre = jnp.int32(self.centre)
        reward_cell = self._other_cell(key, centre)
        state = MazeState(centre, reward_cell, jnp.int32(0), jnp.int32(-1), jnp.float32(0))
        return self._observe(state, params), state

    def step_env(
        self, key: Array, state: MazeState, action: Array, params: MazeParams
    ) -> tuple[Array, MazeState, Array, Array, dict[str, Array]]:
        """info: "found", the reward was reached, and "bumped", a wall was in the way."""
        reached = jnp.asarray(self.next_cells, jnp.int32)[state.cell, action]
        bumped, found = reached == state.cell, reached == state.reward_cell
        reward = jnp.where(found, jnp.float32(params.reward), 0) - jnp.where(bumped, jnp.float32(params.penalty), 0)
        cell = jnp.where(found, self._other_cell(key, state.reward_cell), reached)
        after = MazeState(cell, state.reward_cell, state.time + 1, jnp.asarray(action, jnp.int32), reward)
        return self._observe(after, params), after, reward, jnp.bool_(False), {"found": found, "bumped": bumped}

    def _other_cell(self, key: Array, cell: Array) -> Array:
        """A free cell, each but `cell` as likely."""
        drawn = jax.random.randint(key, (), 0, len(self.cells) - 1, jnp.int32)
        return jnp.where(drawn >= cell, drawn + 1, drawn)

    def _observe(self, state: MazeState, params: MazeParams) -> Array:
        over = state.time.astype(jnp.float32) / jnp.float32(params.max_steps_in_episode)
        others = jnp.stack([jnp.float32(0), jnp.float32(1), over, state.last_reward])
        last_action = jax.nn.one_hot(state.last_action, self.num_actions, dtype=jnp.float32)
        return jnp.concatenate([jnp.asarray(self.views)[state.cell], others, last_action])
