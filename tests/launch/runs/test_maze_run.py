"""Tests a small run in the maze, from the function of `launch.train` to its figures."""

import pytest
from ml_collections import ConfigDict

from launch.reporting import figures
from launch.reporting.draw import report_runs
from launch.train import run
from tasks.maze import MazeTask

CONFIG = {
    "task": {"name": "maze", "size": 5, "episode_steps": 6, "evaluation_batches": 1},
    "model": {"name": "mnm-p", "hidden_features": 4, "memory_features": 3, "memory_layers": 1},
    "training": {"steps": 2, "batch_size": 8, "learning_rate": 0.01, "seeds": 2, "eval_every": 1, "epsilon": 1e-4},
}


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_a_run_is_drawn_over_episodes_with_its_reward_and_a_film_strip(tmp_path, monkeypatch):
    drawn, strips = [], []
    monkeypatch.setattr(figures, "_draw_curve", lambda axis, curve, *rest: drawn.append(curve) or axis.plot([])[0])
    monkeypatch.setattr(MazeTask, "draw_episode", lambda *arguments: strips.append(arguments))
    summary = run(ConfigDict(CONFIG), tmp_path / "9x9/mnm-p")
    assert {"test/reward", "test/found", "test/again"} <= set(summary["metrics"])
    assert 0 <= summary["metrics"]["test/found"]["mean"] <= 1
    table = report_runs(tmp_path).splitlines()
    assert table[0].split()[:7] == ["group", "model", "seeds", "updates", "reward", "worst", "seed"]
    assert f"{summary['metrics']['test/reward']['mean']:.4f}" in table[1]
    assert {curve.episodes for curve in drawn} == {8}  # eight episodes per update
    assert (tmp_path / "learning_curves.png").is_file() and (tmp_path / "9x9/mnm-p/figures/memory_map.png").is_file()
    task, batch, index, trace, path, title = strips[-1]
    assert batch.targets.states.cell[0, index] == task.environment.centre and len(batch.mask) == len(trace.rate) == 6
    assert path == tmp_path / "9x9/mnm-p/figures/episode.png" and title.endswith("a test episode")


def test_dropout_of_an_agent_that_acts_without_it_is_refused(tmp_path):
    config = ConfigDict(CONFIG | {"model": {"name": "lstm", "hidden_features": 4, "dropout": 0.1}})
    with pytest.raises(ValueError, match="task maze is played by the model.*set dropout to 0"):
        run(config, tmp_path)


def test_rewards_are_drawn_over_episodes_and_all_else_over_updates():
    lines = [{"step": 10, "valid/reward": [1.0, 3.0], "valid/loss": [0.0, 0.0]}]
    (axis,) = figures.Figure().subplots(1, 1, squeeze=False).ravel()
    for metric, place in (("valid/reward", 300), ("valid/loss", 10)):
        curve = figures.Curve("a", "mnm-p", lines, 30)
        line = figures._draw_curve(axis, curve, metric, {"color": "#000000"})
        assert line.get_xdata().tolist() == [place]
