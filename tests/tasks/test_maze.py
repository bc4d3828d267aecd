"""Tests every rule of the maze, the scores of the oracle and of random actions, and an episode as text."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image

from mnm_jax.training import Batch
from tasks.actor_critic import Played
from tasks.maze import Maze, MazeParams, MazeState, MazeTask, film
from tasks.maze.oracle import distances, oracle_score, random_score
from tasks.maze.render import render_episode, trips

NINE = """\
#########
#       #
# # # # #
#       #
# #   # #
#       #
# # # # #
#       #
#########"""
UP, DOWN, LEFT, RIGHT = range(4)


def number(maze, row, column):
    return int(np.flatnonzero((maze.cells == (row, column)).all(1))[0])


def state(maze, place, reward_place=(1, 1), **fields):
    start = MazeState(
        jnp.int32(number(maze, *place)),
        jnp.int32(number(maze, *reward_place)),
        jnp.int32(0),
        jnp.int32(-1),
        jnp.float32(0),
    )
    return start._replace(**fields)


def step(maze, now, action, params=None, seed=0):
    return maze.step_env(jax.random.key(seed), now, jnp.int32(action), params or maze.default_params)


def test_walls_pillars_and_a_free_centre():
    assert "\n".join("".join(" #"[int(wall)] for wall in row) for row in Maze(9).walls) == NINE
    # (m - 2)^2 cells minus the pillars; if (m - 1) / 2 is even, the pillar at the centre is left out.
    assert [len(Maze(size).cells) for size in (5, 9, 11, 13)] == [9, 41, 65, 97]
    assert all(tuple(Maze(size).cells[Maze(size).centre]) == (size // 2, size // 2) for size in (5, 9, 11, 13))


@pytest.mark.parametrize("size", [3, 8, 9.0])
def test_a_maze_without_a_centre_is_refused(size):
    with pytest.raises(ValueError, match=f"odd number >= 5.*got {size}"):
        Maze(size)


@pytest.mark.parametrize(
    ("place", "action", "reached"),
    [
        ((3, 3), UP, (2, 3)),
        ((3, 3), DOWN, (4, 3)),
        ((3, 3), LEFT, (3, 2)),
        ((3, 3), RIGHT, (3, 4)),
        ((7, 7), DOWN, (7, 7)),  # the outer wall
        ((3, 2), DOWN, (3, 2)),  # a pillar
        ((3, 4), DOWN, (4, 4)),  # the centre is free
    ],
)
def test_moves_and_walls(place, action, reached):
    maze, params = Maze(9), MazeParams(penalty=0.25)
    _, after, reward, terminated, info = step(maze, state(maze, place), action, params)
    stayed = place == reached
    assert tuple(maze.cells[after.cell]) == reached
    assert float(reward) == (-0.25 if stayed else 0) and bool(info["bumped"]) == stayed
    assert not terminated and not info["found"] and int(after.time) == 1


def test_reaching_the_reward_pays_and_leads_anywhere_else():
    maze = Maze(9)
    now = state(maze, (3, 4), reward_place=(3, 5))
    keys = jax.random.split(jax.random.key(0), 4000)
    _, after, rewards, _, info = jax.jit(jax.vmap(maze.step_env, (0, None, None, None)))(
        keys, now, RIGHT, maze.default_params
    )
    assert np.all(rewards == 10) and np.all(info["found"]) and not np.any(info["bumped"])
    assert np.all(after.reward_cell == now.reward_cell)
    found = np.bincount(after.cell, minlength=41)
    assert found[int(now.reward_cell)] == 0
    others = np.delete(found, int(now.reward_cell))
    # Each of 40 cells is expected 100 times, with a standard deviation of 9.9; the bounds are five of these.
    assert others.min() > 50 and others.max() < 150


def test_the_reward_is_anywhere_but_where_an_episode_starts():
    maze = Maze(9)
    keys = jax.random.split(jax.random.key(1), 4000)
    _, states = jax.jit(jax.vmap(maze.reset))(keys)
    assert np.all(states.cell == maze.centre) and np.all(states.last_action == -1)
    found = np.bincount(states.reward_cell, minlength=41)
    assert found[maze.centre] == 0
    others = np.delete(found, maze.centre)
    assert others.min() > 50 and others.max() < 150


def test_the_observation_is_laid_out_as_described():
    maze = Maze(9)
    first, now = maze.reset(jax.random.key(0))
    # No pillars around the centre: (3, 3), (3, 5), (5, 3), (5, 5) are free around (4, 4).
    np.testing.assert_array_equal(first, [0] * 9 + [0, 1, 0, 0] + [0] * 4)
    now = state(maze, (2, 1), reward_place=(1, 1), time=jnp.int32(49))
    seen, after, reward, _, _ = step(maze, now, UP, seed=3)
    assert float(reward) == 10
    row, column = maze.cells[after.cell]
    around = maze.walls[row - 1 : row + 2, column - 1 : column + 2].ravel()
    np.testing.assert_array_equal(seen, np.float32([*around, 0, 1, 0.25, 10, 1, 0, 0, 0]))
    seen, *_ = step(maze, state(maze, (2, 1), reward_place=(7, 7)), RIGHT)
    np.testing.assert_array_equal(seen, np.float32([1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 1, 0.005, 0, 0, 0, 0, 1]))


def test_an_episode_ends_at_its_limit_and_the_next_one_begins():
    maze, params = Maze(5), MazeParams(max_steps_in_episode=3)
    observation, now = maze.reset(jax.random.key(0), params)
    move = jax.jit(maze.step)
    for time in (1, 2, 3):
        observation, now, _, terminated, truncated, info = move(jax.random.key(time), now, LEFT, params)
        assert not terminated and bool(truncated) == (time == 3)
        assert int(now.time) == (0 if truncated else time)
    assert float(info["final_observation"][11]) == 1 and float(observation[11]) == 0
    assert int(now.cell) == maze.centre and int(now.last_action) == -1


def test_shortest_ways_and_the_score_of_who_knows_the_reward():
    maze = Maze(5)  # nine cells without a pillar: a distance is the difference of rows plus that of columns
    np.testing.assert_array_equal(distances(maze), np.abs(maze.cells[:, None] - maze.cells).sum(-1))
    # One step: the four neighbours of the centre are reached, the four corners are not.
    assert oracle_score(maze, MazeParams(max_steps_in_episode=1)) == pytest.approx(5)
    # Two: the corners too; from a neighbour's cell, three of the other eight are a step away.
    expected = (4 * (10 + 10 * 3 / 8) + 4 * 10) / 8
    assert oracle_score(maze, MazeParams(max_steps_in_episode=2)) == pytest.approx(expected)


def test_the_score_of_random_actions_by_hand():
    maze = Maze(5)
    # One step: it reaches the reward with probability 1/4 if the reward is next to the centre.
    assert random_score(maze, MazeParams(max_steps_in_episode=1)) == pytest.approx(10 * 4 / 8 / 4)
    # Two: a corner is reached by 2 of 16 paths. Next to the centre, either a teleport to one of 8 cells, of which two
    # corners and the centre are next to the reward; or one of three other neighbours, none of which is.
    beside, corner = 1 / 4 + 1 / 4 * 3 / 8 / 4, 2 / 16
    assert random_score(maze, MazeParams(max_steps_in_episode=2)) == pytest.approx(10 * (beside + corner) / 2)
    # The first step never meets a wall here; the second does with probability 1/4, unless a teleport led to the centre
    # (1 in 8, never a wall) or to a corner (4 in 8, a wall with probability 1/2).
    never, teleported = 1 / 4, (0 * 1 + 1 / 2 * 4 + 1 / 4 * 3) / 8
    bumps = (never + (3 / 4 * never + 1 / 4 * teleported)) / 2
    params = MazeParams(reward=0.0, penalty=1.0, max_steps_in_episode=2)
    assert random_score(maze, params) == pytest.approx(-bumps)


def test_an_agent_that_knows_the_reward_earns_the_score_of_the_oracle():
    maze, params = Maze(9), MazeParams(max_steps_in_episode=60)
    knows = jnp.asarray(distances(maze)[maze.next_cells].argmin(1))  # [F, F], first actions of shortest paths

    @partial(jax.vmap)
    def play(key):
        reset_key, *keys = jax.random.split(key, 61)
        _, now = maze.reset(reset_key, params)

        def move(now, key):
            _, now, reward, _, _ = maze.step_env(key, now, knows[now.cell, now.reward_cell], params)
            return now, reward

        return jnp.sum(jax.lax.scan(move, now, jnp.stack(keys))[1])

    earned = np.asarray(jax.jit(play)(jax.random.split(jax.random.key(0), 4000)))
    assert earned.mean() == pytest.approx(oracle_score(maze, params), abs=4 * earned.std() / np.sqrt(4000))


def test_an_episode_as_text_shows_walls_path_and_reward():
    maze = Maze(5)
    cells = [number(maze, *place) for place in ((2, 2), (2, 1), (3, 1), (1, 2), (1, 2))]
    rewards = np.array([0, 0, 10, 0, 0])
    picture = render_episode(maze, cells, number(maze, 3, 2), rewards, ["<", "v", ">*", "^", "<"])
    assert picture == "#####\n#   #\n#.S #\n#.R #\n#####\n   3 <v>*\n   2 ^<"
    assert trips(rewards) == [slice(0, 3), slice(3, 5)] and trips(rewards[:3]) == [slice(0, 3)]


def hand_made():
    """Returns two episodes of four steps: one reaches the reward at its second and last steps, the other never."""
    task = MazeTask(size=5, episode_steps=4)
    maze, shape = task.environment, (4, 2)
    cells = np.full(shape, maze.centre)
    cells[1, 0], cells[3, 0] = number(maze, 2, 1), number(maze, 1, 2)
    reward_cells = np.full(shape, number(maze, 1, 1))
    rewards = np.zeros(shape, np.float32)
    rewards[[1, 3], 0] = 10
    states = MazeState(cells, reward_cells, None, None, None)
    actions = np.array([[2, 3], [0, 3], [1, 3], [2, 3]])
    played = Played(actions, rewards, rewards, rewards, states)
    return task, Batch(np.zeros((*shape, 17)), played, np.ones(shape, np.float32), np.ones(shape, bool))


def test_what_is_counted_and_shown_of_a_played_batch():
    task, batch = hand_made()
    found = {name: (float(mean.total), float(mean.count)) for name, mean in task.metrics(None, batch).items()}
    assert found == {"reward": (20, 2), "found": (1, 2), "again": (1, 1)}
    assert task.tokens(batch, 0) == ["<", "^*", "v", "<*"] and task.tokens(batch, 1) == [">"] * 4
    assert task.render(batch, 0) == "#####\n#R  #\n#.S #\n#   #\n#####\n   2 <^*\n   2 v<*"
    assert task.render(batch, 1).endswith("   4 >>>>")


@pytest.mark.parametrize("rate", [None, np.linspace(0.2, 0.8, 12)])
def test_a_film_strip_shows_each_trip_and_the_rate(tmp_path, monkeypatch, rate):
    axes = []
    draw = film._draw_trip
    monkeypatch.setattr(film, "_draw_trip", lambda axis, e, trip: axes.append(axis) or draw(axis, e, trip))
    maze = Maze(5)
    cells, rewards = np.full(12, maze.centre), np.zeros(12)
    rewards[[4, 6]] = 10
    film.draw_film(film.Episode(maze, cells, rewards, 0, rate), tmp_path / "figures/strip.png", "an episode")
    assert [axis.get_title() for axis in axes] == ["5 steps", "2 steps", "5 steps, not reached"]
    # The reward is in the first corner: from the centre, where the agent stayed, one line ends there.
    assert axes[0].collections[0].get_segments()[-1].tolist() == [[2, 2], [1, 1]]
    height, width, _ = image.imread(tmp_path / "figures/strip.png").shape
    assert (height / width > 0.4) == (rate is not None)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["strip.png"]


def test_the_task_draws_the_episode_that_it_is_given(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(film, "draw_film", lambda episode, *rest: drawn.append(episode))
    task, batch = hand_made()
    task.draw_episode(batch, 1, None, tmp_path / "episode.png", "")
    task.draw_episode(batch, 0, SimpleNamespace(rate=np.arange(4.0)), tmp_path / "episode.png", "")
    assert drawn[0].rate is None and not drawn[0].rewards.any()
    assert drawn[1].rewards.tolist() == [0, 10, 0, 10] and drawn[1].rate.tolist() == [0, 1, 2, 3]
    assert drawn[1].reward_cell == number(task.environment, 1, 1)
    assert [tuple(task.environment.cells[cell]) for cell in drawn[1].cells] == [(2, 2), (2, 1), (2, 2), (1, 2)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 10}, "odd number"),
        ({"penalty": -1.0}, "penalty must be >= 0"),
        ({"episode_steps": 0}, "episode_steps must be >= 1"),
        ({"discount": 1.5}, r"discount must be in \[0, 1\], got 1.5"),
        ({"value_weight": -0.1}, "value_weight must be >= 0"),
        ({"evaluation_batches": 0}, "evaluation_batches must be >= 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MazeTask(**settings)
