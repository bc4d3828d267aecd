"""Evaluates the newest checkpoint of a run on the split "test" and prints the table.

    python -m launch.evaluate --workdir=runs/dictionary

Without checkpoints the parameters are read from `params.npz`, or else from `params.safetensors`. A folder of runs that
differ only in their seed is evaluated as one run with all their seeds. For bAbI the table has the error of each task in
% for every seed, with mean, standard deviation and best seed; a task with more than 5% error counts as failed.
"""

import os

from absl import flags

from launch.command import run_command
from launch.reporting.task_errors import end_table
from launch.runs.evaluate import evaluate_folder
from launch.runs.metrics import summarise


def evaluation_table(workdir: str | os.PathLike, data_dir: str | None = None) -> str:
    """Returns the table of a run, or of a folder of runs; see `launch.runs.evaluate.evaluate_folder`."""
    found = evaluate_folder(workdir, data_dir)
    steps = " and ".join(f"{step:,}" for step in dict.fromkeys(found.steps))
    return f"{workdir}, step {steps}\n{end_table(summarise(found.metrics), found.seeds)}"


def main() -> None:
    print(evaluation_table(_WORKDIR.value, _DATA_DIR.value))


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the task's data, instead of the one in the config.")
    run_command(main, "give the run as --workdir=DIR.")
