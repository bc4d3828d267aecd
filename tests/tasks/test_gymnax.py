"""Tests environments of gymnax as tasks, and our maze against the one of gymnax; skipped without gymnax."""

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch.configs import gymnax as recipe
from launch.runs.build import build_parts, build_task
from tasks.gymnax_env import Adapter, GymnaxTask, loosely
from tasks.maze import Maze, MazeParams, MazeState


@pytest.fixture(scope="module")
def gymnax():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that it imports
        return pytest.importorskip("gymnax", reason="gymnax is not installed: pip install '.[rl]'")


class Repeats:
    """An agent with the same logits at every step."""

    def __init__(self, logits):
        self._logits = jnp.asarray(logits)

    def start(self, batch_size):
        return ()

    def step(self, carry, observations):
        return carry, jnp.broadcast_to(self._logits, (len(observations), len(self._logits)))


def test_without_gymnax_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ImportError, match=r"pip install 'mnm_jax\[rl\]'"):
        build_task(recipe.get_config("MemoryChain-bsuite").task.to_dict())


@pytest.mark.parametrize(
    ("settings", "observation"),
    [
        ({"env_id": "MemoryChain-bsuite", "episode_steps": 6, "parameters": {"memory_length": 3}}, np.ravel),
        ({"env_id": "Catch-bsuite", "episode_steps": 12, "arguments": {"rows": 4, "columns": 3}}, np.ravel),
        ({"env_id": "FrozenLake-misc", "episode_steps": 9}, lambda state: np.eye(16)[state]),
    ],
    ids=lambda value: value["env_id"] if isinstance(value, dict) else "",
)
def test_an_episode_is_the_one_that_gymnax_plays(gymnax, settings, observation):
    """Each step, repeated with gymnax alone, gives the same observation, state, reward and end."""
    task = GymnaxTask(**settings)
    start = task.sample(jax.random.key(1), 2)
    batch = jax.device_get(jax.jit(lambda start: task.play(Repeats(np.zeros(task.output_features)), start))(start))
    env, params = gymnax.make(settings["env_id"], **settings.get("arguments", {}))
    params = params.replace(**settings.get("parameters", {}), max_steps_in_episode=settings["episode_steps"])
    step_env = jax.jit(env.step_env)
    played, ended = batch.targets, 0
    with loosely():
        for b in range(2):
            for t in range(int(batch.mask[:, b].sum())):
                state = jax.tree.map(lambda leaf, t=t, b=b: leaf[t, b], played.states)
                key = jax.random.split(jax.random.wrap_key_data(start.inputs[t, b]), 3)[1]
                seen, after, reward, terminated, _ = step_env(key, state, played.actions[t, b], params)
                assert float(reward) == played.rewards[t, b]
                if t + 1 < len(batch.mask):
                    assert batch.mask[t + 1, b] == (not terminated)
                ended += bool(terminated)
                if not terminated and t + 1 < len(batch.mask):
                    np.testing.assert_array_equal(batch.inputs[t + 1, b], observation(np.asarray(seen)))
                    for new, leaf in zip(jax.tree.leaves(after), jax.tree.leaves(played.states), strict=True):
                        np.testing.assert_array_equal(new, leaf[t + 1, b])
    assert settings["env_id"] == "FrozenLake-misc" or ended == 2
    assert played.rewards.any() or settings["env_id"] == "FrozenLake-misc"


def test_the_picture_shows_actions_and_rewards(gymnax):
    task = build_task(recipe.get_config("MemoryChain-bsuite").task.to_dict())
    batch = jax.device_get(task.play(Repeats([0.0, 99.0, 0.0]), task.sample(jax.random.key(0), 4)))
    bits = (batch.inputs[0, :, 2] > 0).tolist()
    assert set(bits) == {False, True}
    for index, bit in enumerate(bits):
        assert task.render(batch, index) == f"action  {' '.join('1' * 9)}\nreward  {' ' * 16}{1 if bit else -1}"


@pytest.mark.parametrize(("which", "features", "actions"), [("MetaMaze-misc/lstm", 15, 4), ("Catch-bsuite", 50, 3)])
def test_the_recipe_describes_any_environment(gymnax, which, features, actions):
    task, make_model, _ = build_parts(recipe.get_config(which).to_dict())
    assert (task.input_features, task.output_features) == (features, actions + 1)
    model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
    batch = jax.eval_shape(task.play, model, jax.eval_shape(lambda: task.sample(jax.random.key(0), 2)))
    assert batch.inputs.shape == (200, 2, features)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env_id": "Pong"}, "env_id must be one of 'CartPole-v1', .* got 'Pong'"),
        ({"env_id": "Pendulum-v1"}, "env_id must name an environment with discrete actions, got 'Pendulum-v1'"),
        ({"parameters": {"length": 3}}, "a key of parameters of MemoryChain-bsuite must be .*'memory_length'"),
        ({"parameters": {"max_steps_in_episode": 3}}, "set episode_steps"),
        ({"parameters": 3}, "parameters must be a dictionary of settings by name, got 3"),
        ({"arguments": {"bits": 3}}, "bits"),
        ({"episode_steps": 0}, "episode_steps must be >= 1"),
    ],
)
def test_wrong_settings_are_refused(gymnax, settings, message):
    with pytest.raises(ValueError, match=message):
        build_task({"name": "gymnax", **settings})


def test_our_maze_has_the_rules_of_metamaze(gymnax):
    """Walls, moves, rewards and observations agree, from every cell, for every action and place of the reward.

    They differ in the teleport, which in gymnax may lead to the reward's cell and then ends the episode; in the order
    of the actions; in the last action at the first step, which is 0 there; in gymnax's pillar at an even centre.
    """
    maze = Maze(7)
    with loosely():
        theirs, params = gymnax.make("MetaMaze-misc", maze_size=5)
    np.testing.assert_array_equal(1 - np.asarray(theirs.env_map), maze.walls)
    np.testing.assert_array_equal(theirs.coords, maze.cells)
    np.testing.assert_array_equal(theirs.center_position, maze.cells[maze.centre])
    params = params.replace(punishment=-0.5)
    ours = MazeParams(penalty=0.5, max_steps_in_episode=params.max_steps_in_episode)
    to_theirs = jnp.array([0, 2, 3, 1])  # up, down, left, right -> up, right, down, left
    free = jnp.asarray(maze.cells)
    make_state = type(jax.eval_shape(lambda: Adapter(theirs, params).reset_env(jax.random.key(0), params)[1]))

    def both(cell, reward_cell, action):
        time, last = jnp.int32(3), jnp.int32(0)
        now = MazeState(cell, reward_cell, time, last, jnp.float32(0))
        seen, after, reward, _, info = maze.step_env(jax.random.key(0), now, action, ours)
        there = make_state(
            last_action=last, last_reward=jnp.float32(0), pos=free[cell], goal=free[reward_cell], time=jnp.float32(3)
        )
        with loosely():
            found, then, paid, _, _ = theirs.step_env(jax.random.key(1), there, to_theirs[action], params)
            _, bumped, *_ = theirs.step_env(jax.random.key(2), there, to_theirs[action], params)
        return seen, free[after.cell], reward, info["found"], found, then.pos, paid, bumped.pos

    cells, actions = jnp.arange(len(free)), jnp.arange(4)
    every = jax.vmap(jax.vmap(jax.vmap(both, (None, None, 0)), (None, 0, None)), (0, None, None))
    seen, cell, reward, reached, found, place, paid, again = map(np.asarray, jax.jit(every)(cells, cells, actions))
    assert reached.any() and (reward == 10).any() and (reward == -0.5).any()
    np.testing.assert_array_equal(reward, paid)
    stays = ~reached  # a reached reward teleports, at random
    np.testing.assert_array_equal(cell[stays], place[stays])
    assert (place[reached] != again[reached]).any()
    np.testing.assert_array_equal(seen[stays][:, :9], found[stays][:, :9])  # walls
    np.testing.assert_array_equal(seen[..., 13:17], found[..., 9:13][..., np.asarray(to_theirs)])  # last action
    np.testing.assert_array_equal(seen[..., 12], found[..., 13])  # last reward
    np.testing.assert_array_equal(seen[..., 11] * np.float32(200), found[..., 14])  # time, not scaled
