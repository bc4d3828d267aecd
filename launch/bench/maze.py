"""Benchmark of the maze: environment and agent in one program, and the whole update."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
from flax import nnx

from launch.bench.measure import Candidate, Group, Program, Row, compile_program, dividing, keep_state
from launch.configs import maze as recipe
from launch.runs.build import build_parts
from mnm_jax.training import init_state, make_parallel_update, make_placement, split_model

DRIVERS = ("play", "train")


def maze(
    devices: Sequence[jax.Device],
    *,
    agents: Sequence[str] = tuple(recipe.MODELS),
    batch: int = 30,
    steps: int = 200,
) -> Iterator[Group]:
    """Yields groups that time episodes of the 9x9 recipe, for each agent.

    "play" is the program of mazes and agent, "train" the whole update: it plays a batch and learns from it. Both run on
    the largest number of devices that divides the batch.

    Args:
      devices: the devices to use.
      agents: models of the recipe.
      batch: episodes per program.
      steps: steps per episode.
    """
    devices = dividing(devices, batch)
    for agent in agents:
        fields = {"agent": agent, "batch": batch, "steps": steps}
        prepare = partial(_prepare, agent, devices, batch, steps)
        candidates = [Candidate(fields | {"driver": name}, partial(prepare, name)) for name in DRIVERS]
        yield Group(candidates, _with_rates)


def _prepare(agent: str, devices: Sequence[jax.Device], batch: int, steps: int, driver: str) -> Program:
    config = recipe.get_config(f"9x9/{agent}")
    config.task.episode_steps, config.training.batch_size, config.training.seeds = steps, batch, 1
    parts = build_parts(config.to_dict())
    task: Any = parts.task  # the maze, which can be played
    make_model, training = parts.make_model, parts.training
    optimizer, graphdef = training.make_optimizer(), split_model(make_model)
    state = init_state(make_model, optimizer, 0, 1)
    placement = make_placement(devices)
    if driver == "play":
        params = jax.tree.map(lambda leaf: leaf[0], state.params)
        drawn = jax.device_put(task.sample(jax.random.key(0), batch), placement.divided)
        play = lambda params, drawn: task.play(nnx.merge(graphdef, params), drawn).targets.returns  # noqa: E731
        return compile_program(play, (jax.device_put(params, placement.replicated), drawn), len(devices))
    meta_weight = training.meta_weight
    update = make_parallel_update(graphdef, task, optimizer, meta_weight=meta_weight, batch_size=batch, devices=devices)
    return Program(keep_state(lambda state: update(state, None), jax.device_put(state, placement.replicated)))


def _with_rates(rows: list[Row]) -> list[Row]:
    """Returns the rows with `kilosteps_per_second` of the environment; None where nothing was measured."""

    def rate(row: Row) -> float | None:
        return None if row["milliseconds"] is None else row["batch"] * row["steps"] / row["milliseconds"]

    return [row | {"kilosteps_per_second": rate(row)} for row in rows]
