"""Loads the trained model of one seed of a run."""

import os
from collections.abc import Callable
from typing import NamedTuple

from launch.runs.build import build_parts
from launch.runs.workdir import read_config
from mnm_jax._checks import check_sizes
from mnm_jax.training import SequenceModel, Task, load_model


class Trained(NamedTuple):
    """The task of a run and the trained model of one of its seeds."""

    task: Task
    model: SequenceModel


def load_trained(
    workdir: str | os.PathLike,
    seed: int | None = None,
    data_dir: str | None = None,
    prepare: Callable[[Task], None] | None = None,
) -> Trained:
    """Returns the task of a run and a trained model.

    Args:
      workdir: folder of the run.
      seed: one of the run's seeds, `training.seed` and those that follow it; None: the first.
      data_dir: folder of the task's data; None: the one that the config names.
      prepare: called with the task before the model is made; may change it, or raise an error.

    Raises:
      FileNotFoundError: if there is no run, no checkpoint or no data.
      ValueError: if the run has no such seed, or a file is damaged.
    """
    task, make_model, training = build_parts(read_config(workdir, data_dir))
    if prepare is not None:
        prepare(task)
    first = training.seed
    seed = first if seed is None else seed
    check_sizes(least=0, seed=seed)
    if not first <= seed < first + training.seeds:
        seeds = ", ".join(map(str, range(first, first + training.seeds)))
        raise ValueError(f"seed must be one of the run's seeds, {seeds}, in {workdir}, got {seed=}.")
    return Trained(task, load_model(workdir, make_model, seed - first))
