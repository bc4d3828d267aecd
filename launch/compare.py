"""Trains all runs of a suite that are not finished yet, then draws and prints the comparison.

    python -m launch.compare --suite=algorithmic [--only="copy/*"] [--set=training.seeds=2 ...] [--dry_run]

Runs go to `WORKDIR/LABEL/`, each as by `launch.train`. Stopped and started again, it goes on where it was: finished
runs are left alone, the one cut off is resumed. The same command started several times, on one machine or on several
that share the folder, divides the runs: each takes the next that nobody works on.
"""

import contextlib
import fcntl
import fnmatch
import json
import pathlib
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from absl import app, flags

from launch.errors import one_line_errors, parse_flags
from launch.report import report_runs
from launch.runs.suites import SUITES, Cell, make_cell
from launch.runs.workdir import SUMMARY, claim
from launch.train import run


def choose(cells: Mapping[str, Cell], only: str, settings: list[str]) -> dict[str, Cell]:
    """The runs whose label matches the pattern `only`, with settings such as "training.seeds=2" changed in all of them.

    Raises:
        ValueError: no such run, or a setting that is none.
    """
    chosen = {label: cell for label, cell in cells.items() if fnmatch.fnmatchcase(label, only)}
    if not chosen:
        raise ValueError(f"no label matches {only!r}; the labels are {', '.join(cells)}.")
    changes = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or "." not in name:
            raise ValueError(f"a setting is SECTION.KEY=VALUE, such as training.seeds=2, got {setting!r}.")
        changes[name] = _parse(value)
    return {label: make_cell(cell.recipe, {**cell.changes, **changes}) for label, cell in chosen.items()}


def _parse(value: str) -> Any:
    """A number, true, false or a list as in JSON; anything else is text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def command(cell: Cell, workdir: pathlib.Path) -> str:
    """What trains one run of a suite by itself."""
    changes = (f"--config.{name}={value}" for name, value in cell.changes.items())
    words = ["python", "-m", "launch.train", f"--config=launch/configs/{cell.recipe}", f"--workdir={workdir}"]
    return shlex.join([*words, *changes])


def train_all(cells: Mapping[str, Cell], workdir: pathlib.Path) -> list[str]:
    """Trains every run that is not finished and that no other process works on; returns the labels of the latter.

    Raises:
        ValueError: a folder holds a run of another config, finished or not. Others: as `launch.train.run`, at the first
        run that does not end well.
    """
    busy = []
    for label, cell in cells.items():
        folder = workdir / label
        with _mine(workdir / ".locks" / label.replace("/", ",")) as mine:
            if not mine:
                busy.append(label)
            elif (folder / SUMMARY).is_file():
                claim(folder, json.loads(json.dumps(cell.config.to_dict())))
            else:
                print(f"{label}: {command(cell, folder)}", flush=True)
                run(cell.config, folder, command=command(cell, folder))
    return busy


@contextlib.contextmanager
def _mine(path: pathlib.Path) -> Iterator[bool]:
    """Whether this process has the lock; the system takes it back when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def main(argv: list[str]) -> None:
    with one_line_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; the suite is given as --suite=NAME.")
        workdir = pathlib.Path(_WORKDIR.value or f"runs/{_SUITE.value}")
        cells = choose(SUITES[_SUITE.value](), _ONLY.value, _SET.value)
        if _DRY_RUN.value:
            for label, cell in cells.items():
                state = "finished" if (workdir / label / SUMMARY).is_file() else "to do"
                print(f"# {state}\n{command(cell, workdir / label)}")
            return
        busy = train_all(cells, workdir)
        if busy:
            print(f"another process works on {', '.join(busy)}; it will draw the comparison.")
        else:
            print(report_runs(workdir))


if __name__ == "__main__":
    _SUITE = flags.DEFINE_enum("suite", None, sorted(SUITES), "Which comparison.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs; runs/SUITE if not given.")
    _ONLY = flags.DEFINE_string("only", "*", "Only runs whose label matches, such as copy/* or */mnm-p.")
    _SET = flags.DEFINE_multi_string("set", [], "A setting for all runs, SECTION.KEY=VALUE; may be repeated.")
    _DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the command of every run and stop.")
    flags.mark_flag_as_required("suite")
    app.run(main, flags_parser=parse_flags)
