"""An episode in the maze as text."""

from collections.abc import Sequence

import numpy as np

from tasks.maze.environment import Maze

ARROWS = "^v<>"  # of the actions


def trips(rewards: np.ndarray) -> list[slice]:
    """The steps of each way to the reward, and at last those of the way that was not finished, if there are any.

    >>> trips(np.array([0, 10, 0, 0, 10, 0]))
    [slice(0, 2, None), slice(2, 5, None), slice(5, 6, None)]
    """
    ends = [int(step) + 1 for step in np.flatnonzero(np.asarray(rewards) > 0)]
    edges = [0, *ends, *([len(rewards)] if ends[-1:] != [len(rewards)] else [])]
    return [slice(start, end) for start, end in zip(edges, edges[1:], strict=False)]


def render_episode(
    maze: Maze, cells: Sequence[int], reward_cell: int, rewards: np.ndarray, tokens: Sequence[str]
) -> str:
    """The maze with the first way to the reward, then the moves of each way in a line of its own, with its length.

        # walls   R the reward   S where a way starts   . cells that were entered on it

    cells: where the agent was before each step `[T]`. rewards, tokens: of each step.
    """
    ways = trips(rewards)
    grid = np.where(maze.walls, "#", " ")
    grid[tuple(maze.cells[np.asarray(cells)[ways[0]]].T)] = "."
    grid[tuple(maze.cells[cells[0]])] = "S"
    grid[tuple(maze.cells[reward_cell])] = "R"
    picture = ["".join(row) for row in grid]
    lines = [f"{way.stop - way.start:4d} {''.join(tokens[way])}" for way in ways]
    return "\n".join([*picture, *lines])
