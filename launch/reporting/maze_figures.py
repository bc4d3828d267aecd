"""An episode in the maze as a film strip: the ways to the reward one after the other, and the write rate under them."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from launch.reporting.figures import save_figure
from tasks.maze import Maze
from tasks.maze.render import trips

_FRAMES = 6  # ways shown
_WIDTH = 8.0  # inches


class Episode(NamedTuple):
    """What happened. cells: where the agent was before each step `[T]`; rewards `[T]`; reward_cell: a number of a cell.

    rate: beta `[T]`, or None for an agent without a memory of its own.
    """

    maze: Maze
    cells: np.ndarray
    rewards: np.ndarray
    reward_cell: int
    rate: np.ndarray | None


def film_strip(episode: Episode, path: str | os.PathLike, title: str) -> None:
    """Draws the first six ways to the reward, and below, over all steps, beta and where the reward was reached.

    Args:
        path: the PNG file; written whole or not at all.
    """
    ways = trips(episode.rewards)[:_FRAMES]
    mosaic = [[str(frame) for frame in range(_FRAMES)], ["rate"] * _FRAMES]
    if episode.rate is None:
        mosaic.pop()
    figure = Figure(figsize=(_WIDTH, 2.2 if episode.rate is None else 3.8), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplot_mosaic(mosaic)
    for frame in range(_FRAMES):
        axes[str(frame)].axis("off")
    for frame, way in enumerate(ways):
        _draw_way(axes[str(frame)], episode, way)
    if episode.rate is not None:
        _draw_rate(axes["rate"], episode.rate, np.flatnonzero(episode.rewards > 0))
    save_figure(figure, path)


def _draw_way(axis: Axes, episode: Episode, way: slice) -> None:
    """The maze, the way from a dot to the reward (a star), light at first and dark at last, and its number of steps."""
    maze, reached = episode.maze, episode.rewards[way.stop - 1] > 0
    axis.imshow(maze.walls, cmap="Greys", vmin=0, vmax=1.4)
    places = episode.maze.cells[episode.cells[way]]
    reward = maze.cells[episode.reward_cell]
    if reached:
        places = np.concatenate([places, reward[None]])
    x, y = places[:, 1], places[:, 0]
    lines = [((x[i], y[i]), (x[i + 1], y[i + 1])) for i in range(len(x) - 1)]
    axis.add_collection(
        LineCollection(lines, array=np.arange(len(lines)), cmap="Blues", clim=(-len(lines), len(lines)))
    )
    axis.plot(x[0], y[0], "o", color="#0072B2", markersize=4)
    axis.plot(reward[1], reward[0], "*", color="#D55E00", markersize=7)
    steps = way.stop - way.start
    axis.set_title(f"{steps} step{'s' * (steps != 1)}" + ("" if reached else ", not there"), fontsize=9)


def _draw_rate(axis: Axes, rate: Sequence[float], found: np.ndarray) -> None:
    axis.plot(np.arange(len(rate)), rate, color="#0072B2", linewidth=1.4)
    for index, step in enumerate(found):
        axis.axvline(step, color="#D55E00", linewidth=0.8, label="reward reached" if index == 0 else None)
    axis.set(xlim=(0, len(rate) - 1), ylim=(-0.02, 1.02), xlabel="step", ylabel="write rate $\\beta$")
    if len(found):
        axis.legend(loc="upper right", fontsize=8)
