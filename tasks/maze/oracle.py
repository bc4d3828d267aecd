"""Reference scores of the maze: an oracle that knows the reward's cell, and an agent that acts at random.

Shape letter: `F` free cells.
"""

import numpy as np

from tasks.maze.environment import Maze, MazeParams


def distances(maze: Maze) -> np.ndarray:
    """Returns `[F, F]`, the steps of a shortest path from a cell (row) to another (column)."""
    count = len(maze.cells)
    steps = np.where(np.eye(count, dtype=bool), 0, count)
    while True:
        shorter = np.minimum(steps, 1 + steps[maze.next_cells].min(1))
        if (shorter == steps).all():
            return steps
        steps = shorter


def oracle_score(maze: Maze, params: MazeParams | None = None) -> float:
    """Returns the expected reward per episode of an agent that takes shortest paths to the known reward cell.

    No agent earns more. With d_r(c) the distance from cell c to the reward cell r, an agent at c with s steps left
    earns

        V_s(c) = 1[d_r(c) <= s] (reward + mean over c' != r of V_{s - d_r(c)}(c')).

    The score is the mean of V_limit(centre) over the cells r other than the centre.

    Examples:
      >>> round(oracle_score(Maze(size=9)), 1)
      416.2
    """
    params = maze.default_params if params is None else params
    steps, limit = distances(maze), params.max_steps_in_episode
    scores = []
    for reward_cell in np.delete(np.arange(len(maze.cells)), maze.centre):
        far = steps[:, reward_cell]
        others = far > 0
        teleported = np.zeros(limit + 1)  # the mean of V_s over the cells that a teleport leads to
        for left in range(1, limit + 1):
            reaches = others & (far <= left)
            teleported[left] = np.sum(params.reward + teleported[left - far[reaches]]) / others.sum()
        start = far[maze.centre]
        scores.append(params.reward + teleported[limit - start] if start <= limit else 0.0)
    return float(np.mean(scores))


def random_score(maze: Maze, params: MazeParams | None = None) -> float:
    """Returns the expected reward per episode of an agent that draws every action uniformly: the chance level.

    Examples:
      >>> round(random_score(Maze(size=9)), 1)
      14.4
    """
    params = maze.default_params if params is None else params
    count = len(maze.cells)
    moves = np.zeros((count, count))  # transition matrix of the uniform policy
    np.add.at(moves, (np.arange(count)[:, None], maze.next_cells), 1 / maze.num_actions)
    bumps = (maze.next_cells == np.arange(count)[:, None]).mean(1)
    scores = []
    for reward_cell in np.delete(np.arange(count), maze.centre):
        place, score = np.eye(count)[maze.centre], 0.0  # the distribution over cells
        for _ in range(params.max_steps_in_episode):
            score -= params.penalty * float(place @ bumps)
            place = place @ moves
            found, place[reward_cell] = place[reward_cell], 0
            score += params.reward * float(found)
            place += np.where(np.arange(count) == reward_cell, 0, found / (count - 1))
        scores.append(score)
    return float(np.mean(scores))
