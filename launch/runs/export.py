"""Exports the model of a run as files for programs without this library."""

import importlib
import os
import pathlib

import jax

from launch.runs.load import load_model
from launch.runs.size import input_shape
from mnm_jax._extras import extra
from mnm_jax._files import whole_file
from mnm_jax.export import export_step, save_safetensors, to_arrays
from mnm_jax.training import SequenceModel


def export_run(
    workdir: str | os.PathLike, out: str | os.PathLike, seed: int = 0, data_dir: str | None = None
) -> list[pathlib.Path]:
    """Writes step, weights and carry of a run's model into `out` and returns the three paths.

    Args:
      workdir: folder of the run.
      out: folder to write to; created if missing.
      seed: index of the seed in the run, from 0.
      data_dir: folder of the task's data; None: the one that the config names.

    Raises:
      FileNotFoundError: if there is no run, no checkpoint or no data.
      ValueError: if the run has no such seed, or a file is damaged.
      ImportError: if a package of the extra "export" is missing; nothing is written.
    """
    for package in ("flatbuffers", "safetensors"):  # checked before the work, which needs them only at its end
        with extra("export"):
            importlib.import_module(package)
    task, model = load_model(workdir, seed, data_dir)
    inputs, carry = input_shape(task, model), model.start(1)
    one = jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
    step = export_step(model, carry, one, SequenceModel.step)

    paths = [pathlib.Path(out) / name for name in ("step.stablehlo", "weights.safetensors", "carry.safetensors")]
    save_safetensors(paths[1], to_arrays(model))
    save_safetensors(paths[2], to_arrays(carry))
    with whole_file(paths[0], "wb") as file:
        file.write(step.serialize())
    return paths
