"""A small run in the maze from the command's function to its figures, and what is drawn of an episode."""

import numpy as np
import pytest
from matplotlib import image
from ml_collections import ConfigDict

from launch.report import report_runs
from launch.reporting import figures, maze_figures
from launch.reporting.maze_figures import Episode, film_strip
from launch.train import run
from tasks.maze import Maze

CONFIG = {
    "task": {"name": "maze", "size": 5, "episode_steps": 6, "evaluation_batches": 1},
    "model": {"name": "mnm-p", "hidden_features": 4, "memory_features": 3, "memory_layers": 1},
    "training": {"steps": 2, "batch_size": 8, "learning_rate": 0.01, "seeds": 2, "eval_every": 1, "epsilon": 1e-4},
}


def test_a_run_is_drawn_over_episodes_with_its_reward_and_a_film_strip(tmp_path, monkeypatch):
    drawn, strips = [], []
    monkeypatch.setattr(figures, "_draw_curve", lambda axis, curve, *rest: drawn.append(curve) or axis.plot([])[0])
    monkeypatch.setattr("launch.report.film_strip", lambda episode, *rest: strips.append(episode))
    summary = run(ConfigDict(CONFIG), tmp_path / "9x9/mnm-p")
    assert {"test/reward", "test/found", "test/again"} <= set(summary["metrics"])
    assert 0 <= summary["metrics"]["test/found"]["mean"] <= 1
    table = report_runs(tmp_path).splitlines()
    assert table[0].split() == ["group", "model", "seeds", "steps", "reward", "worst", "seed", "seconds", "parameters"]
    assert f"{summary['metrics']['test/reward']['mean']:.4f}" in table[1]
    assert {curve.episodes for curve in drawn} == {8}  # an update is eight episodes
    assert (tmp_path / "learning_curves.png").is_file() and (tmp_path / "9x9/mnm-p/figures/memory_map.png").is_file()
    for episode in strips:
        assert episode.cells[0] == episode.maze.centre and len(episode.cells) == len(episode.rate) == 6


def test_rewards_are_drawn_over_episodes_and_all_else_over_updates():
    lines = [{"step": 10, "valid/reward": [1.0, 3.0], "valid/loss": [0.0, 0.0]}]
    (axis,) = figures.Figure().subplots(1, 1, squeeze=False).ravel()
    for metric, place in (("valid/reward", 300), ("valid/loss", 10)):
        curve = figures.Curve("a", "mnm-p", lines, 30)
        line = figures._draw_curve(axis, curve, metric, {"color": "#000000"})
        assert line.get_xdata().tolist() == [place]


@pytest.mark.parametrize("rate", [None, np.linspace(0.2, 0.8, 12)])
def test_a_film_strip_shows_each_way_and_the_rate(tmp_path, monkeypatch, rate):
    ways = []
    draw = maze_figures._draw_way
    monkeypatch.setattr(maze_figures, "_draw_way", lambda axis, e, way: ways.append(axis) or draw(axis, e, way))
    maze = Maze(5)
    cells, rewards = np.full(12, maze.centre), np.zeros(12)
    rewards[[4, 6]] = 10
    episode = Episode(maze, cells, rewards, 0, rate)
    film_strip(episode, tmp_path / "strip.png", "an episode")
    assert [axis.get_title() for axis in ways] == ["5 steps", "2 steps", "5 steps, not there"]
    # Towards the reward in the first corner: from the centre, where the agent stayed, one line ends there.
    assert ways[0].collections[0].get_segments()[-1].tolist() == [[2, 2], [1, 1]]
    height, width, _ = image.imread(tmp_path / "strip.png").shape
    assert (height / width > 0.4) == (rate is not None)
