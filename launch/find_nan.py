"""Names the operation that caused the NaN at which a run stopped.

    python -m launch.find_nan --workdir=runs/dictionary

The update is computed again from the run's newest checkpoint, one operation at a time, which may take minutes for long
sequences. The printed line names seed, update and parameter, then the first operation on the way to it whose operands
were finite and whose result was not, with its place in the source and the ranges of its operands. No file is changed.
"""

from absl import flags

from launch.command import run_command
from launch.runs.build import build_parts
from launch.runs.workdir import read_config
from mnm_jax.training import explain_fault


def main() -> None:
    task, make_model, training = build_parts(read_config(_WORKDIR.value, _DATA_DIR.value))
    print(explain_fault(task, make_model, training, _WORKDIR.value))


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the task's data, instead of the one in the config.")
    run_command(main, "give the run as --workdir=DIR.")
