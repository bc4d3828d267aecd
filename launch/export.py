"""Writes a trained model as files that need neither this library nor Python to be used, or as a small folder of a run.

    python -m launch.export --workdir=runs/dictionary --out=exported [--seed=0]

The files in OUT are `step.stablehlo` (one step, for any batch size, for cpu, cuda and tpu; versioned by JAX, which
reads files of older versions for at least six months), `weights.safetensors` and `carry.safetensors` (the carry of one
sequence before its first step; for a batch, repeat it along the first axis). They are used with jax and safetensors
alone:

    step = jax.export.deserialize(bytearray(open("exported/step.stablehlo", "rb").read()))
    weights, carry = (safetensors.flax.load_file(f"exported/{name}.safetensors") for name in ("weights", "carry"))
    carry, logits = step.call(weights, carry, inputs)

The docstring of the task describes `inputs`, one step of a batch. Of a batch's flags the step takes only
`reset_controller`: if the task's batches have it, as bAbI's do with `controller="sentence"`, `inputs` is the pair
`(inputs, reset_controller)`, with the flag `[B]` bool. At a step with `fork`, or with `mask` False, keep the carry from
before the step; at a step with `fork_memory`, keep its leaves whose names begin with `memory` or `recent`.

With --as_run, OUT becomes a folder of the run for the programs of this package, such as `launch.evaluate` and
`launch.ask`, small enough for a repository: `config.json`, `summary.json` and `params.safetensors`, the weights of all
seeds rounded to half precision. `launch.evaluate --workdir=OUT` then shows whether the rounding changed the result.
"""

from absl import flags

from launch.command import run_command
from launch.runs.export import export_run, ship_run


def main() -> None:
    if _AS_RUN.value:
        if _SEED.value is not None:
            raise ValueError("--as_run writes the weights of all seeds; leave out --seed.")
        paths = ship_run(_WORKDIR.value, _OUT.value, _DATA_DIR.value)
    else:
        paths = export_run(_WORKDIR.value, _OUT.value, _SEED.value, _DATA_DIR.value)
    for path in paths:
        print(f"{path}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    _OUT = flags.DEFINE_string("out", None, "Folder to write to.", required=True)
    _SEED = flags.DEFINE_integer("seed", None, "One of the run's seeds; without it the first.")
    _AS_RUN = flags.DEFINE_bool("as_run", False, "Write a small folder of the run, with the weights of all seeds.")
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the task's data, instead of the one in the config.")
    run_command(main, "name the folder as --out=DIR.")
