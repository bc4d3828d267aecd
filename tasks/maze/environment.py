"""The maze as an environment: walls, pillars, a hidden reward, and a teleport on reaching it.

Shape letters: `F` free cells, `m` rows and columns of the maze.
"""

import dataclasses
from functools import cached_property
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.environment import Environment, Transition

Array = jax.Array

MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])  # (row, column) of the actions up, down, left, right


class MazeParams(NamedTuple):
    """Parameters of the maze, which JAX may trace.

    Attributes:
      reward: reward for reaching the reward's cell.
      penalty: penalty for walking into a wall, >= 0.
      max_steps_in_episode: length of an episode in steps.
    """

    reward: float = 10.0
    penalty: float = 0.0
    max_steps_in_episode: int = 200


class MazeState(NamedTuple):
    """State of one episode; cells are numbered as the rows of `Maze.cells`.

    Attributes:
      cell: number of the agent's cell.
      reward_cell: number of the reward's cell.
      time: steps taken in this episode.
      last_action: the previous action; -1 before the first step.
      last_reward: the previous reward, not scaled; 0 before the first step.
    """

    cell: Array
    reward_cell: Array
    time: Array
    last_action: Array
    last_reward: Array


@dataclasses.dataclass(frozen=True)
class Maze(Environment):
    """A grid of `m x m` cells in which one hidden cell, another in every episode, gives a reward.

    There is a wall around the grid, and a pillar at every even row and column except the centre. Size 9:

        #########
        #       #
        # # # # #
        #       #
        # #   # #
        #       #
        # # # # #
        #       #
        #########

    An episode starts at the centre. The reward's cell is drawn uniformly from the free cells except the centre, stays
    the same for the episode and is never observed. Reaching it pays the reward and moves the agent to a free cell drawn
    uniformly from all except the reward's. A step into a wall leaves the agent where it is. An episode ends at its
    limit of steps, never before.

    Actions: 0 up, 1 down, 2 left, 3 right.

    Observation, 17 numbers: the 3 x 3 cells around the agent, row by row (1 wall, 0 free); an unused 0; a constant 1;
    time / max_steps_in_episode; the last reward, not scaled; the last action, one-hot over four (zeros at first).

    Args:
      size: rows and columns `m`, the outer wall included; odd, so that the maze has a centre.

    Raises:
      ValueError: size is even or below 5.

    Examples:
      >>> maze = Maze(size=5)
      >>> observation, state = maze.reset(jax.random.key(0))
      >>> observation.shape, maze.cells[state.cell]
      ((17,), array([2, 2]))
      >>> observation, state, reward, terminated, truncated, info = maze.step(jax.random.key(1), state, jnp.int32(0))
      >>> maze.cells[state.cell], bool(info["bumped"])
      (array([1, 2]), False)

    References:
      Miconi et al., Backpropamine, ICLR 2019: the maze. Lange, gymnax 1.0: the interface.
    """

    size: int = 9
    observation_features: ClassVar[int] = 17
    num_actions: ClassVar[int] = 4

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 5 or self.size % 2 == 0:
            raise ValueError(f"size must be an odd number >= 5, so that there is a centre, got {self.size!r}.")

    @property
    def default_params(self) -> MazeParams:
        return MazeParams()

    @cached_property
    def walls(self) -> np.ndarray:
        """`[m, m]` bool, True at walls and pillars."""
        walls = np.ones((self.size, self.size), bool)
        walls[1:-1, 1:-1] = False
        walls[::2, ::2] = True
        walls[self.size // 2, self.size // 2] = False
        return walls

    @cached_property
    def cells(self) -> np.ndarray:
        """`[F, 2]` row and column of every free cell; a cell's number is its row here."""
        return np.argwhere(~self.walls)

    @cached_property
    def centre(self) -> int:
        """Number of the cell where an episode starts."""
        return int(np.flatnonzero((self.cells == self.size // 2).all(1))[0])

    @cached_property
    def next_cells(self) -> np.ndarray:
        """`[F, 4]` number of the cell that each action leads to; the same cell if a wall is in the way."""
        numbers = np.full(self.walls.shape, -1)
        numbers[tuple(self.cells.T)] = np.arange(len(self.cells))
        reached = numbers[tuple(np.moveaxis(self.cells[:, None] + MOVES, -1, 0))]
        return np.where(reached < 0, np.arange(len(self.cells))[:, None], reached)

    @cached_property
    def views(self) -> np.ndarray:
        """`[F, 9]` float32 walls around each free cell: 1 wall, 0 free."""
        around = np.array([(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)])
        return self.walls[tuple(np.moveaxis(self.cells[:, None] + around, -1, 0))].astype(np.float32)

    def reset_env(self, key: Array, params: MazeParams) -> tuple[Array, MazeState]:
        centre = jnp.int32(self.centre)
        state = MazeState(
            cell=centre,
            reward_cell=self._other_cell(key, centre),
            time=jnp.int32(0),
            last_action=jnp.int32(-1),
            last_reward=jnp.float32(0),
        )
        return self._observe(state, params), state

    def step_env(self, key: Array, state: MazeState, action: Array, params: MazeParams) -> Transition:
        """Moves the agent; `info` holds "found" (the reward was reached) and "bumped" (a wall was in the way)."""
        reached = jnp.asarray(self.next_cells, jnp.int32)[state.cell, action]
        bumped, found = reached == state.cell, reached == state.reward_cell
        reward = jnp.where(found, jnp.float32(params.reward), 0) - jnp.where(bumped, jnp.float32(params.penalty), 0)
        after = MazeState(
            cell=jnp.where(found, self._other_cell(key, state.reward_cell), reached),
            reward_cell=state.reward_cell,
            time=state.time + 1,
            last_action=jnp.asarray(action, jnp.int32),
            last_reward=reward,
        )
        return self._observe(after, params), after, reward, jnp.bool_(False), {"found": found, "bumped": bumped}

    def _other_cell(self, key: Array, cell: Array) -> Array:
        """Returns a free cell, uniform over all except `cell`."""
        drawn = jax.random.randint(key, (), 0, len(self.cells) - 1, jnp.int32)
        return jnp.where(drawn >= cell, drawn + 1, drawn)

    def _observe(self, state: MazeState, params: MazeParams) -> Array:
        """Returns the observation of a state, `[17]`."""
        elapsed = state.time.astype(jnp.float32) / jnp.float32(params.max_steps_in_episode)
        others = jnp.stack([jnp.float32(0), jnp.float32(1), elapsed, state.last_reward])
        last_action = jax.nn.one_hot(state.last_action, self.num_actions, dtype=jnp.float32)
        return jnp.concatenate([jnp.asarray(self.views)[state.cell], others, last_action])
