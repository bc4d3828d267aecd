"""A maze with a hidden reward: an agent finds it once by searching and then returns to it from memory."""

from tasks.maze.environment import Maze, MazeParams, MazeState
from tasks.maze.task import MazeTask

__all__ = ["Maze", "MazeParams", "MazeState", "MazeTask"]
