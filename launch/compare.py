"""Trains all runs of a suite that are not finished yet, then draws and prints the comparison.

    python -m launch.compare --suite=algorithmic [--only="copy/*"] [--set=training.seeds=2 ...] [--dry_run]

Each run trains in `WORKDIR/LABEL/` as with `launch.train`. Started again, the command leaves finished runs unchanged
and resumes an interrupted one. Several processes may run the command at once, on one machine or on several that share
the folder: each takes the next run that no other process trains. Before each run of the suite "league" the command
trains one run per learning rate of a short list, in `WORKDIR/LABEL/tuning/`, and selects the rate with the highest
validation accuracy.
"""

import pathlib

from absl import flags

from launch.command import run_command
from launch.reporting.draw import CURVES, report_runs
from launch.suites.runs import SUITES
from launch.suites.train import choose, plan, train_all
from launch.train import run


def main() -> None:
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{_SUITE.value}")
    suite = choose(SUITES[_SUITE.value](), _ONLY.value, _SET.value)
    if _DRY_RUN.value:
        print(plan(suite, workdir))
        return
    busy = train_all(suite, workdir, run)
    if busy:
        print(f"another process trains {', '.join(busy)}; it will draw the comparison.")
    else:
        print(report_runs(workdir))
        print(f"figure: {workdir / CURVES}")


if __name__ == "__main__":
    _SUITE = flags.DEFINE_enum("suite", None, sorted(SUITES), "The comparison.", required=True)
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs; runs/SUITE if not given.")
    _ONLY = flags.DEFINE_string("only", "*", "Only runs whose label matches, such as copy/* or */mnm-p.")
    _SET = flags.DEFINE_multi_string("set", [], "A setting for all runs, SECTION.KEY=VALUE; may be repeated.")
    _DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the command of every run and stop.")
    run_command(main, "the suite is given as --suite=NAME.")
