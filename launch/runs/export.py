"""Exports the model of a run, for programs without this library, or as a small folder of a run."""

import importlib
import os
import pathlib
import shutil
from typing import Any

import jax

from launch.runs.build import build_parts
from launch.runs.load import load_trained
from launch.runs.size import sequence_shape
from launch.runs.workdir import CONFIG, SUMMARY, read_config
from mnm_jax._extras import extra
from mnm_jax._files import whole_file
from mnm_jax.export import export_step, save_safetensors, to_arrays
from mnm_jax.training import SequenceModel, load_params, save_params
from tasks.babi.language import VOCABULARY


def export_run(
    workdir: str | os.PathLike, out: str | os.PathLike, seed: int | None = None, data_dir: str | None = None
) -> list[pathlib.Path]:
    """Writes step, weights and carry of a run's model into `out` and returns the three paths.

    The step takes the inputs of the task's batches, `[B, ...]`; or, if the batches have the flag `reset_controller`,
    the pair (inputs, reset_controller `[B]` bool).

    Args:
      workdir: folder of the run.
      out: folder to write to; created if missing.
      seed: one of the run's seeds; None: the first.
      data_dir: folder of the task's data; None: the one that the config names.

    Raises:
      FileNotFoundError: if there is no run, no checkpoint or no data.
      ValueError: if the run has no such seed, or a file is damaged.
      ImportError: if a package of the extra "export" is missing; nothing is written.
    """
    for package in ("flatbuffers", "safetensors"):  # checked before the work, which needs them only at its end
        with extra("export"):
            importlib.import_module(package)
    task, model = load_trained(workdir, seed, data_dir)
    batch, carry = sequence_shape(task, model), model.start(1)
    inputs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch.inputs)
    if batch.reset_controller is None:
        step = export_step(model, carry, inputs, SequenceModel.step)
    else:
        flag = jax.ShapeDtypeStruct(batch.mask.shape[1:], bool)
        step = export_step(model, carry, (inputs, flag), _step_with_reset)

    paths = [pathlib.Path(out) / name for name in ("step.stablehlo", "weights.safetensors", "carry.safetensors")]
    save_safetensors(paths[1], to_arrays(model))
    save_safetensors(paths[2], to_arrays(carry))
    with whole_file(paths[0], "wb") as file:
        file.write(step.serialize())
    return paths


def _step_with_reset(model: SequenceModel, carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
    return model.step(carry, inputs[0], reset_controller=inputs[1])


def ship_run(workdir: str | os.PathLike, out: str | os.PathLike, data_dir: str | None = None) -> list[pathlib.Path]:
    """Writes a small folder of a run into `out` and returns the paths of its files.

    They are `config.json`, `summary.json` if the run has ended, `vocabulary.json` if the run has it, and the weights of
    all seeds in half precision, `params.safetensors`; all programs that read the model of a run accept this folder.

    Args:
      workdir: folder of the run.
      out: another folder to write to; created if missing.
      data_dir: folder of the task's data; None: the one that the config names.

    Raises:
      FileNotFoundError: if there is no run, no checkpoint or no data.
      ValueError: if a file is damaged, a weight has no representation in half precision, or `out` holds weights that
        programs read in place of the new file.
      ImportError: safetensors is not installed.
    """
    _, make_model, _ = build_parts(read_config(workdir, data_dir))
    params, step = load_params(workdir, make_model)
    folder = pathlib.Path(out)
    if found := [name for name in ("checkpoints", "params.npz") if (folder / name).exists()]:
        raise ValueError(f"{folder / found[0]} would be read in place of the new weights; give another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    files = [pathlib.Path(workdir) / name for name in (CONFIG, SUMMARY, VOCABULARY)]
    copied = [pathlib.Path(shutil.copy(file, folder)) for file in files if file.is_file()]
    return [*copied, save_params(folder, params, step, half=True)]
