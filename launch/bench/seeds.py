"""Benchmark of seeds: the dictionary recipe's update for all its seeds in one program."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax

from launch.bench.measure import Candidate, Group, Program, compile_program, with_ratios
from launch.configs import dictionary
from launch.runs.build import build_parts
from mnm_jax.training import init_state, make_update, split_model


def seeds(devices: Sequence[jax.Device], *, config: Mapping[str, Any] | None = None) -> Iterator[Group]:
    """Yields one group: the recipe's update with its seeds mapped by `vmap`, and by `lax.map`.

    It runs on one device, since seeds are mapped within each device.

    Args:
      devices: the first one is used.
      config: replaces the recipe's config.
    """
    parts = build_parts(config or dictionary.get_config().to_dict())
    training = parts.training
    optimizer = training.make_optimizer()
    step = make_update(
        split_model(parts.make_model),
        parts.task,
        optimizer,
        meta_weight=training.meta_weight,
        batch_size=training.batch_size,
    )
    mappings: dict[str, Callable] = {
        "map": lambda state: jax.lax.map(lambda one: step(one, None), state),
        "vmap": jax.vmap(lambda one: step(one, None)),
    }

    def prepare(mapping: Callable) -> Program:
        state = init_state(parts.make_model, optimizer, training.seed, training.seeds)
        return compile_program(mapping, (jax.device_put(state, devices[0]),), 1)

    sizes = {"seeds": training.seeds, "batch": training.batch_size}
    candidates = [Candidate({"mapping": name} | sizes, partial(prepare, mappings[name])) for name in mappings]
    yield Group(candidates, partial(with_ratios, field="mapping", reference="map"))
