"""Draws an episode in the maze as a film strip: each trip to the reward in a frame, and the write rate below.

Import this module only to draw: it needs matplotlib.

Shape letter: `T` steps of the episode.
"""

import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from mnm_jax._files import whole_file
from tasks.maze.environment import Maze
from tasks.maze.render import trips

_FRAMES = 6
_WIDTH = 8.0  # inches
_DPI = 150
_BLUE, _RED = "#0072B2", "#D55E00"


class Episode(NamedTuple):
    """One episode of an agent.

    Attributes:
      maze: the maze.
      cells: cell of the agent before each step, `[T]`.
      rewards: reward of each step, `[T]`.
      reward_cell: number of the reward's cell.
      rate: write rate beta of each step, `[T]`; None for an agent without a memory.
    """

    maze: Maze
    cells: np.ndarray
    rewards: np.ndarray
    reward_cell: int
    rate: np.ndarray | None


def draw_film(episode: Episode, path: str | os.PathLike, title: str) -> None:
    """Draws the first six trips to the reward and, below them, the write rate over all steps.

    Args:
      episode: the episode to draw.
      path: the PNG file. It is written under another name and renamed when it is complete.
      title: the figure's title.
    """
    mosaic: list[Any] = [[str(frame) for frame in range(_FRAMES)]]
    if episode.rate is not None:
        mosaic.append(["rate"] * _FRAMES)
    figure = Figure(figsize=(_WIDTH, 2.2 if episode.rate is None else 3.8), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplot_mosaic(mosaic)
    for frame in range(_FRAMES):
        axes[str(frame)].axis("off")
    for frame, trip in enumerate(trips(episode.rewards)[:_FRAMES]):
        _draw_trip(axes[str(frame)], episode, trip)
    if episode.rate is not None:
        _draw_rate(axes["rate"], episode.rate, np.flatnonzero(episode.rewards > 0))
    with whole_file(pathlib.Path(path), "wb") as file:
        figure.savefig(file, format="png", dpi=_DPI, bbox_inches="tight")


def _draw_trip(axis: Axes, episode: Episode, trip: slice) -> None:
    """Draws the maze with one trip, from a dot to the reward (a star), pale at its start and dark at its end."""
    maze, reached = episode.maze, episode.rewards[trip.stop - 1] > 0
    axis.imshow(maze.walls, cmap="Greys", vmin=0, vmax=1.4)
    places = maze.cells[episode.cells[trip]]
    reward = maze.cells[episode.reward_cell]
    if reached:
        places = np.concatenate([places, reward[None]])
    x, y = places[:, 1], places[:, 0]
    lines = [((x[i], y[i]), (x[i + 1], y[i + 1])) for i in range(len(x) - 1)]
    shades = LineCollection(lines, array=np.arange(len(lines)), cmap="Blues", clim=(-len(lines), len(lines)))
    axis.add_collection(shades)
    axis.plot(x[0], y[0], "o", color=_BLUE, markersize=4)
    axis.plot(reward[1], reward[0], "*", color=_RED, markersize=7)
    steps = trip.stop - trip.start
    axis.set_title(f"{steps} step{'s' * (steps != 1)}" + ("" if reached else ", not reached"), fontsize=9)


def _draw_rate(axis: Axes, rate: np.ndarray, found: np.ndarray) -> None:
    """Draws the write rate, and a line at each step of `found`, where the reward was reached."""
    axis.plot(np.arange(len(rate)), rate, color=_BLUE, linewidth=1.4)
    for index, step in enumerate(found):
        axis.axvline(step, color=_RED, linewidth=0.8, label="reward reached" if index == 0 else None)
    axis.set(xlim=(0, len(rate) - 1), ylim=(-0.02, 1.02), xlabel="step", ylabel="write rate $\\beta$")
    if len(found):
        axis.legend(loc="upper right", fontsize=8)
