"""Renders an episode in the maze as text.

Shape letter: `T` steps of the episode.
"""

from collections.abc import Sequence

import numpy as np

from tasks.maze.environment import Maze

ARROWS = "^v<>"  # the actions up, down, left, right


def trips(rewards: np.ndarray) -> list[slice]:
    """Splits an episode into trips to the reward.

    Args:
      rewards: reward of each step, `[T]`.

    Returns:
      The steps of each trip; the last one may be incomplete.

    Examples:
      >>> trips(np.array([0, 10, 0, 0, 10, 0]))
      [slice(0, 2, None), slice(2, 5, None), slice(5, 6, None)]
    """
    ends = [int(step) + 1 for step in np.flatnonzero(np.asarray(rewards) > 0)]
    edges = [0, *ends, *([len(rewards)] if ends[-1:] != [len(rewards)] else [])]
    return [slice(start, end) for start, end in zip(edges, edges[1:], strict=False)]


def render_episode(maze: Maze, cells: np.ndarray, reward_cell: int, rewards: np.ndarray, tokens: Sequence[str]) -> str:
    """Returns the maze with the first trip to the reward, and below it the length and moves of every trip.

    `#` wall, `R` reward, `S` start, `.` cells entered on the first trip.

    Args:
      maze: the maze.
      cells: cell of the agent before each step, `[T]`.
      reward_cell: number of the reward's cell.
      rewards: reward of each step, `[T]`.
      tokens: move of each step, `[T]`.

    Examples:
      >>> print(render_episode(Maze(size=5), np.array([4, 3, 4]), 0, np.array([0, 10, 0]), ["<", "^*", ">"]))
      #####
      #R  #
      #.S #
      #   #
      #####
         2 <^*
         1 >
    """
    found = trips(rewards)
    grid = np.where(maze.walls, "#", " ")
    grid[tuple(maze.cells[np.asarray(cells)[found[0]]].T)] = "."
    grid[tuple(maze.cells[cells[0]])] = "S"
    grid[tuple(maze.cells[reward_cell])] = "R"
    picture = ["".join(row) for row in grid]
    lines = [f"{trip.stop - trip.start:4d} {''.join(tokens[trip])}" for trip in found]
    return "\n".join([*picture, *lines])
