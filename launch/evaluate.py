"""Evaluates the newest checkpoint of a run on the split "test" and prints the table.

    python -m launch.evaluate --workdir=runs/dictionary
    python -m launch.evaluate --workdir=results/babi/15_epochs/chain-p/seed_0 --out=results/babi/shipped.jsonl

Without checkpoints the parameters are read from `params.npz`, or else from `params.safetensors`. A folder of runs that
differ only in their seed is evaluated as one run with all their seeds. For bAbI the table has the error of each task in
% for every seed, with mean, standard deviation and best seed; a task with more than 5% error counts as failed.

With --out the mean of each metric is also written into a file, as the run's line, in place of an older one.
"""

import os

from absl import flags

from launch.command import run_command
from launch.reporting.task_errors import end_table
from launch.runs.evaluate import Evaluation, evaluate_folder, read_evaluations, write_evaluation
from launch.runs.metrics import summarise


def evaluation_table(workdir: str | os.PathLike, found: Evaluation) -> str:
    """Returns the table of a run, or of a folder of runs."""
    steps = " and ".join(f"{step:,}" for step in dict.fromkeys(found.steps))
    return f"{workdir}, step {steps}\n{end_table(summarise(found.metrics), found.seeds)}"


def main() -> None:
    if _OUT.value is not None:
        read_evaluations(_OUT.value)  # refuses another file before the evaluation, which may take long
    found = evaluate_folder(_WORKDIR.value, _DATA_DIR.value)
    print(evaluation_table(_WORKDIR.value, found))
    if _OUT.value is not None:
        write_evaluation(_OUT.value, _WORKDIR.value, found)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the task's data, instead of the one in the config.")
    _OUT = flags.DEFINE_string("out", None, "File with a line (JSON) per evaluated run, to write the result into.")
    run_command(main, "give the run as --workdir=DIR.")
