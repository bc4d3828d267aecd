"""Writes a trained model as files that need neither this library nor Python to be used.

    python -m launch.export --workdir=runs/dictionary --out=exported [--seed=0]

OUT gets `step.stablehlo` (one step, for any batch, for cpu, cuda and tpu; versioned by JAX, which reads files of older
versions for at least six months), `weights.safetensors` and `carry.safetensors` (of one sequence, before its first
step: repeat it along the first axis for a batch). With these three, and jax and safetensors alone:

    step = jax.export.deserialize(bytearray(open("exported/step.stablehlo", "rb").read()))
    weights, carry = (safetensors.flax.load_file(f"exported/{name}.safetensors") for name in ("weights", "carry"))
    carry, logits = step.call(weights, carry, inputs)
"""

import os
import pathlib

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx

from launch.errors import one_line_errors, parse_flags
from launch.runs.build import build_parts
from launch.runs.size import input_shape
from launch.runs.workdir import read_config
from mnm_jax.export import export_step, save_safetensors, to_arrays
from mnm_jax.training import SequenceModel, load_params, split_model


def export_run(workdir: str | os.PathLike, out: str | os.PathLike, seed: int = 0) -> list[pathlib.Path]:
    """Writes the three files of a run's model into `out`, and returns their paths. seed: which of its seeds, from 0.

    Raises:
        FileNotFoundError: no run, no checkpoint or no data. ValueError: no such seed, or damage.
        ImportError: the package safetensors is missing.
    """
    task, make_model, training = build_parts(read_config(workdir))
    if not 0 <= seed < training.seeds:
        raise ValueError(f"seed must be from 0 to {training.seeds - 1} in {workdir}, got {seed=}.")
    params, _ = load_params(workdir, make_model)
    model = nnx.merge(split_model(make_model), jax.tree.map(lambda leaf: jnp.asarray(leaf[seed]), params))
    inputs, carry = input_shape(task, model), model.start(1)
    one = jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
    step = export_step(model, carry, one, SequenceModel.step)

    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in ("step.stablehlo", "weights.safetensors", "carry.safetensors")]
    save_safetensors(paths[1], to_arrays(model))
    save_safetensors(paths[2], to_arrays(carry))
    unfinished = paths[0].with_suffix(".unfinished")
    unfinished.write_bytes(step.serialize())
    unfinished.replace(paths[0])
    return paths


def main(argv: list[str]) -> None:
    with one_line_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; name the folder as --out=DIR.")
        for path in export_run(_WORKDIR.value, _OUT.value, _SEED.value):
            print(f"{path}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
    _OUT = flags.DEFINE_string("out", None, "Folder to write to.")
    _SEED = flags.DEFINE_integer("seed", 0, "Which seed of the run, from 0.")
    flags.mark_flags_as_required(["workdir", "out"])
    app.run(main, flags_parser=parse_flags)
