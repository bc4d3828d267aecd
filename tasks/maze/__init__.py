"""A maze with a hidden reward that is found once and then gone back to."""

from tasks.maze.environment import Maze, MazeParams, MazeState
from tasks.maze.task import MazeTask

__all__ = ["Maze", "MazeParams", "MazeState", "MazeTask"]
