"""The NumPy maze is the maze, and what a loop and a program play is the same game."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.bench.maze import NumpyMaze, maze, play_in_python
from launch.bench.measure import Candidate, Program, measure
from tasks.maze import Maze, MazeParams, MazeTask
from tasks.maze.oracle import best_actions


@pytest.mark.parametrize("size", [9, 11])
def test_the_numpy_maze_is_the_maze(size):
    """Step by step with the same moves; where chance decides, the NumPy maze is given what the other one drew."""
    params = MazeParams(penalty=0.5, max_steps_in_episode=120)
    ours, theirs = Maze(size), NumpyMaze(size, 0.5, 120, np.random.default_rng(0))
    np.testing.assert_array_equal(ours.walls, theirs.walls)
    place = lambda number: tuple(ours.cells[int(number)].tolist())  # noqa: E731
    seen, state = ours.reset(jax.random.key(3), params)
    np.testing.assert_array_equal(seen, theirs.reset())
    step, found, walk, knows = jax.jit(ours.step_env), 0, np.random.default_rng(0), best_actions(ours)
    for time in range(120):
        theirs.reward_cell = place(state.reward_cell)
        straight = knows[int(state.cell), int(state.reward_cell)]
        action = int(walk.choice([straight, walk.integers(4)]))
        seen, state, reward, _, info = step(jax.random.key(time), state, jnp.int32(action), params)
        observed, paid, over = theirs.step(action)
        if info["found"]:
            assert theirs.cell != theirs.reward_cell
            found, theirs.cell = found + 1, place(state.cell)
            observed = theirs.observe()
        np.testing.assert_allclose(observed, seen, rtol=1e-6)
        assert (paid, over, theirs.cell) == (float(reward), time == 119, place(state.cell))
    assert found >= 3


def test_chance_in_the_numpy_maze_leaves_out_the_cell_itself():
    theirs = NumpyMaze(5, 0.0, 10, np.random.default_rng(0))
    cells = {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}
    assert {theirs._other_than((1, 1)) for _ in range(300)} == cells - {(1, 1)}


def test_a_loop_and_a_program_play_the_same_game():
    """A policy that always goes up, then right: what it earns has the same mean in both."""
    task = MazeTask(size=5, episode_steps=40)

    class UpThenRight:
        def start(self, batch_size):
            return jnp.int32(0)

        def step(self, time, seen):
            sure = jnp.where(jnp.arange(5) == jnp.where(time % 4 == 0, 0, 3 - time % 4), 1e3, 0.0)
            return time + 1, jnp.broadcast_to(sure, (len(seen), 5))

    policy, episodes = UpThenRight(), 400
    played = task.play(policy, task.sample(jax.random.key(0), episodes)).targets.rewards.sum(0)
    step = jax.jit(policy.step)
    looped = play_in_python(task, partial(policy.start, episodes), step, episodes, np.random.default_rng(0))
    assert looped == pytest.approx(float(played.mean()), abs=5 * float(played.std()) * np.sqrt(2 / episodes))


def test_a_small_suite_from_end_to_end():
    (group,) = maze(jax.devices()[:2], agents=("rnn",), batch=4, steps=3)
    rows = group.finish(measure(group.candidates, memory_bytes=None, pause=lambda: None))
    assert [row["driver"] for row in rows] == ["python", "loop", "play", "train"]
    for row in rows:
        assert row["kilosteps_per_second"] == pytest.approx(12 / row["milliseconds"])
        assert row["ratio_to_loop"] == pytest.approx(rows[1]["milliseconds"] / row["milliseconds"])


def test_rates_of_what_was_not_measured_are_not_known():
    (group,) = maze(jax.devices()[:1], agents=("rnn",))
    candidates = [Candidate({"driver": name}, partial(Program, int)) for name in ("python", "loop")]
    rows = measure(candidates, memory_bytes=None, pause=lambda: None)
    rows = [row | {"batch": 30, "steps": 200, "milliseconds": ms} for row, ms in zip(rows, (None, 2.0), strict=True)]
    python, loop = group.finish(rows)
    assert python["kilosteps_per_second"] is None and loop["ratio_to_python"] is None
    assert loop["kilosteps_per_second"] == 3000
