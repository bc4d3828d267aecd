"""The maze's benchmark: environment, agent and update as one program, beside a loop in Python over a NumPy maze."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from launch.bench.measure import Candidate, Group, Program, Row, compile_program, with_ratios
from launch.configs import maze as recipe
from launch.runs.build import build_parts
from mnm_jax.training import init_state, split_model
from mnm_jax.training._parallel import make_parallel_step, make_placement
from tasks.maze import MazeTask
from tasks.maze.environment import MOVES

DRIVERS = ("python", "loop", "play", "train")


class NumpyMaze:
    """One episode of `tasks.maze.Maze`, as one writes it without JAX.

    rng: draws the reward's cell and where a teleport leads.
    """

    def __init__(self, size: int, penalty: float, limit: int, rng: np.random.Generator):
        self.limit, self.penalty, self.rng = limit, penalty, rng
        self.walls = np.zeros((size, size), bool)
        self.walls[[0, -1]] = self.walls[:, [0, -1]] = self.walls[::2, ::2] = True
        self.centre = (size // 2, size // 2)
        self.walls[self.centre] = False
        self.free = [tuple(cell) for cell in np.argwhere(~self.walls).tolist()]

    def reset(self) -> np.ndarray:
        self.cell, self.time, self.last_action, self.last_reward = self.centre, 0, -1, 0.0
        self.reward_cell = self._other_than(self.centre)
        return self.observe()

    def step(self, action: int) -> tuple[np.ndarray, float, bool]:
        """(observation, reward, whether the episode is over)."""
        row, column = self.cell[0] + MOVES[action][0], self.cell[1] + MOVES[action][1]
        reward = 0.0
        if self.walls[row, column]:
            reward = -self.penalty
        elif (row, column) == self.reward_cell:
            reward, self.cell = 10.0, self._other_than(self.reward_cell)
        else:
            self.cell = (row, column)
        self.time, self.last_action, self.last_reward = self.time + 1, action, reward
        return self.observe(), reward, self.time >= self.limit

    def observe(self) -> np.ndarray:
        row, column = self.cell
        seen = np.zeros(17, np.float32)
        seen[:9] = self.walls[row - 1 : row + 2, column - 1 : column + 2].ravel()
        seen[10], seen[11], seen[12] = 1, self.time / self.limit, self.last_reward
        if self.last_action >= 0:
            seen[13 + self.last_action] = 1
        return seen

    def _other_than(self, cell: tuple[int, int]) -> tuple[int, int]:
        while True:
            drawn = self.free[self.rng.integers(len(self.free))]
            if drawn != cell:
                return drawn


def play_in_python(task: MazeTask, start: Callable, step: Callable, batch_size: int, rng: np.random.Generator) -> float:
    """Plays a batch of episodes step by step, one maze after the other; returns the mean reward of an episode.

    step: `(carry, observations [B, 17]) -> (carry, logits [B, 5])`.
    """
    mazes = [NumpyMaze(task.size, task.penalty, task.episode_steps, rng) for _ in range(batch_size)]
    observations, carry, total = np.stack([maze.reset() for maze in mazes]), start(), 0.0
    for _ in range(task.episode_steps):
        carry, logits = step(carry, observations)
        actions = np.argmax(np.asarray(logits)[:, :-1] + rng.gumbel(size=(batch_size, 4)), -1)
        done = [maze.step(int(action)) for maze, action in zip(mazes, actions, strict=True)]
        observations = np.stack([seen for seen, _, _ in done])
        total += sum(reward for _, reward, _ in done)
    return total / batch_size


def maze(
    devices: Sequence[jax.Device],
    *,
    agents: Sequence[str] = tuple(recipe.MODELS),
    batch: int = 30,
    steps: int = 200,
) -> Iterator[Group]:
    """Episodes of the 9x9 recipe by each agent.

    "python": NumPy mazes and the agent stepped in Python, for all episodes at once, operation by operation. "loop": the
    same, but the agent's step is compiled. "play": mazes and agent in one program. "train": the whole update, played
    and learned from. Programs lie on all devices that divide the batch; Python is on one core.
    """
    devices = devices[: max(n for n in range(1, len(devices) + 1) if batch % n == 0)]
    for agent in agents:
        fields = {"agent": agent, "batch": batch, "steps": steps}
        prepare = partial(_prepare, agent, devices, batch, steps)
        candidates = [Candidate(fields | {"driver": name}, partial(prepare, name)) for name in DRIVERS]
        yield Group(candidates, _with_rates)


def _prepare(agent: str, devices: Sequence[jax.Device], batch: int, steps: int, driver: str) -> Program:
    config = recipe.get_config(f"9x9/{agent}")
    config.task.episode_steps, config.training.batch_size, config.training.seeds = steps, batch, 1
    task, make_model, training = build_parts(config.to_dict())
    optimizer, graphdef = training.make_optimizer(), split_model(make_model)
    state = init_state(make_model, optimizer, 0, 1)
    params = jax.tree.map(lambda leaf: leaf[0], state.params)
    if driver in ("python", "loop"):
        return _loop(task, graphdef, params, batch, compiled=driver == "loop")
    placement = make_placement(devices)
    if driver == "play":
        drawn = jax.device_put(task.sample(jax.random.key(0), batch), placement.divided)
        play = lambda params, drawn: task.play(nnx.merge(graphdef, params), drawn).targets.returns  # noqa: E731
        return compile_program(play, (jax.device_put(params, placement.replicated), drawn), len(devices))
    meta_weight = training.meta_weight
    update = make_parallel_step(graphdef, task, optimizer, meta_weight=meta_weight, batch_size=batch, devices=devices)
    kept = [jax.device_put(state, placement.replicated)]

    def run() -> None:  # an update uses up the state that it is given
        kept[0], metrics = update(kept[0], None)
        jax.block_until_ready((kept[0], metrics))

    return Program(run)


def _loop(task: MazeTask, graphdef: nnx.GraphDef, params: Any, batch: int, *, compiled: bool) -> Program:
    def step(params: Any, carry: Any, seen: jax.Array) -> tuple[Any, jax.Array]:
        return nnx.merge(graphdef, params).step(carry, seen)

    model, rng = nnx.merge(graphdef, params), np.random.default_rng(0)
    one_step = partial(jax.jit(step), params) if compiled else model.step

    def run() -> None:
        play_in_python(task, partial(model.start, batch), one_step, batch, rng)

    return Program(run)


def _with_rates(rows: list[Row]) -> list[Row]:
    """kilosteps_per_second, of the environment, and ratios to both loops."""

    def rate(row: Row) -> float | None:
        return None if row["milliseconds"] is None else row["batch"] * row["steps"] / row["milliseconds"]

    for reference in ("python", "loop"):
        rows = with_ratios(rows, "driver", reference)
    return [row | {"kilosteps_per_second": rate(row)} for row in rows]
