"""Who knows where the reward is: the shortest ways, and what the best possible agent earns.

Shape letter: `F` free cells.
"""

import numpy as np

from tasks.maze.environment import Maze, MazeParams


def distances(maze: Maze) -> np.ndarray:
    """`[F, F]` steps of the shortest way from a cell (first) to another (second)."""
    count = len(maze.cells)
    steps = np.where(np.eye(count, dtype=bool), 0, count)
    while True:
        shorter = np.minimum(steps, 1 + steps[maze.next_cells].min(1))
        if (shorter == steps).all():
            return steps
        steps = shorter


def best_actions(maze: Maze) -> np.ndarray:
    """`[F, F]` a first action of a shortest way from a cell (first) to another (second)."""
    return distances(maze)[maze.next_cells].argmin(1)


def oracle_score(maze: Maze, params: MazeParams | None = None) -> float:
    """Expected reward of an episode for an agent that knows the reward's cell and goes straight to it: no one has more.

    With d_r the distances to the cell r, V_s(c) = 1[d_r(c) <= s] (10 + mean over c' != r of V_{s - d_r(c)}(c')) is what
    is earned from cell c on with s steps left; the score is the mean over r of V_200(centre), r not the centre.
    """
    params = maze.default_params if params is None else params
    steps, limit = distances(maze), params.max_steps_in_episode
    scores = []
    for reward_cell in np.delete(np.arange(len(maze.cells)), maze.centre):
        far = steps[:, reward_cell]
        others = far > 0
        teleported = np.zeros(limit + 1)  # mean of V_s over the cells that a teleport leads to
        for left in range(1, limit + 1):
            reaches = others & (far <= left)
            teleported[left] = np.sum(params.reward + teleported[left - far[reaches]]) / others.sum()
        start = far[maze.centre]
        scores.append(params.reward + teleported[limit - start] if start <= limit else 0.0)
    return float(np.mean(scores))
