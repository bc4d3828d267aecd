"""Registry of the benchmark suites: the groups to measure, and the figure."""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from launch.bench import figures
from launch.bench.forms import limit, scaling, training_step
from launch.bench.layer import layer
from launch.bench.maze import maze
from launch.bench.measure import Group, Row
from launch.bench.peers import peers
from launch.bench.seeds import seeds


class Suite(NamedTuple):
    """A benchmark suite.

    Attributes:
      groups: `(devices, **sizes) -> groups` of candidates.
      draw: `(rows, path, title)`, draws the figure.
    """

    groups: Callable[..., Iterator[Group]]
    draw: Callable[[Sequence[Row], pathlib.Path, str], None]


SUITES = {
    "training_step": Suite(training_step, figures.draw_training_step),
    "scaling": Suite(scaling, figures.draw_scaling),
    "limit": Suite(limit, figures.draw_limit),
    "peers": Suite(peers, figures.draw_peers),
    "seeds": Suite(seeds, figures.draw_seeds),
    "maze": Suite(maze, figures.draw_maze),
    "layer": Suite(layer, figures.draw_layer),
}
