"""Draws figures and tables of finished runs.

    python -m launch.report --workdir=DIR                    # one run, or a folder of runs at any depth
    python -m launch.report --workdir=DIR --publish=FOLDER   # adds the runs below DIR to the light form in FOLDER
    python -m launch.report --results=results                # writes RESULTS.md and docs/results/ beside that folder

For one run the report draws `DIR/figures/learning_curve.png` and, if its model has a memory and its parameters are
there, `DIR/figures/memory_map*.png`. For a folder of runs it draws both for each run, and `DIR/learning_curves.png`,
which compares them (runs in `DIR/GROUP/LABEL/`: one panel per group, one curve per label; runs in `DIR/LABEL/`: one
panel). If there are at least three test sets KEY=N, such as lengths, it draws `DIR/accuracy_by_KEY.png`. It prints a
table of the runs. If the runs in one folder, `DIR/GROUP/LABEL/SEED/`, differ only in their seed, they count as one run
with several seeds.
"""

import pathlib

from absl import flags

from launch.command import run_command
from launch.reporting.draw import CURVES, report_run, report_runs
from launch.reporting.pages import write_results
from launch.reporting.table import comparison_rows
from launch.reporting.text_table import format_columns
from launch.runs.finished import publish_runs, read_run
from launch.runs.workdir import CONFIG, SUMMARY


def main() -> None:
    if _RESULTS.value is not None and _WORKDIR.value is None:
        if _PUBLISH.value is not None:
            raise ValueError("--publish takes the runs of --workdir; leave out --results.")
        if _DATA_DIR.value is not None:
            raise ValueError("--results reads no data; leave out --data_dir.")
        for path in write_results(pathlib.Path(_RESULTS.value)):
            print(f"written: {path}")
        return
    if _WORKDIR.value is None or _RESULTS.value is not None:
        raise ValueError("give either --workdir=DIR or --results=DIR.")
    workdir = pathlib.Path(_WORKDIR.value)
    if _PUBLISH.value is not None and _DATA_DIR.value is not None:
        raise ValueError("--publish reads no data; leave out --data_dir.")
    if _PUBLISH.value is not None:
        for place in publish_runs(workdir, pathlib.Path(_PUBLISH.value)):
            print(f"published: {place}")
    elif (workdir / CONFIG).exists() or (workdir / SUMMARY).exists():
        report_run(workdir, _DATA_DIR.value)
        print(format_columns(comparison_rows([read_run(workdir, workdir)])))
        print(f"figures: {workdir / 'figures'}")
    else:
        print(report_runs(workdir, _DATA_DIR.value))
        print(f"figure: {workdir / CURVES}")


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of one run, or of several at any depth.")
    _PUBLISH = flags.DEFINE_string("publish", None, "Folder that gets the runs of --workdir in the light form.")
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the task's data, instead of the one in the config.")
    _RESULTS = flags.DEFINE_string("results", None, "Folder of sections; RESULTS.md and docs/results/ go beside it.")
    run_command(main, "give the runs as --workdir=DIR or --results=DIR.")
