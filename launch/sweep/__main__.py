"""Trains many runs of one recipe with other settings, side by side, and says which settings are best.

    python -m launch.sweep --config=launch/configs/dictionary.py --space=launch/configs/dictionary_space.py \
        --num_trials=8 --workdir=runs/sweep [--config.KEY=VALUE ...] [--dry_run]

A space is a Python file with `SPACE`, or a JSON file; `launch/sweep/space.py` says what is in it. Trials go to
`WORKDIR/trials/NAME/`, each a run as of `launch.train` with its output in `log.txt`; the recipe as it is comes first.
Trials that fall behind are stopped early (ASHA). Started again, the sweep goes on: finished trials are left alone,
those cut off are resumed, those that failed tried again. At the end come `leaderboard.json`, `leaderboard.md` and
`leaderboard.png`. Needs `pip install mnm_jax[sweep]`.
"""

import json
import pathlib
import runpy
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from launch.command import one_line_errors, parse_flags
from launch.reporting.text_table import format_columns, format_markdown
from launch.runs.build import build_training
from launch.runs.workdir import write_json
from launch.sweep.space import choose_trials, expand, plan


def read_space(path: str) -> Mapping[str, Any]:
    """The space of a JSON file, or `SPACE` of a Python file.

    Raises:
        ValueError: it has none. FileNotFoundError: no such file.
    """
    if not path.endswith(".py"):
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    content = runpy.run_path(path)
    if "SPACE" not in content:
        raise ValueError(f"{path} has no SPACE.")
    return content["SPACE"]


def main(argv: list[str]) -> None:
    with one_line_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; write flags as --NAME=VALUE.")
        workdir = pathlib.Path(_WORKDIR.value).absolute()
        trials = choose_trials(expand(read_space(_SPACE.value)), _NUM_TRIALS.value)
        passed = [word for word in sys.argv[1:] if word.startswith(("--config=", "--config."))]
        planned = [plan(spec, _CONFIG.value, passed, pathlib.Path(_WORKDIR.value)) for spec in trials]
        for trial in planned:  # finds wrong values before anything starts
            build_training(trial.config["training"])
        if _DRY_RUN.value:
            for trial in planned:
                print(shlex.join(trial.command))
            return
        names = dict.fromkeys(name for spec in trials for name in spec.changes)
        defaults = {name: _CONFIG.value[name.split(".", 1)[0]][name.split(".", 1)[1]] for name in names}

        try:
            from launch.sweep import leaderboard, tuning
        except ImportError as error:
            raise ImportError(f"{error}; a sweep needs Ray: pip install 'mnm_jax[sweep]'.") from error

        resources = {"CPU": _CPUS.value, "GPU": _GPUS.value, "TPU": _TPUS.value}
        errors = tuning.run(
            planned,
            workdir,
            metric=_METRIC.value,
            largest=not _SMALLEST.value,
            early_stopping=_EARLY_STOPPING.value,
            host=tuning.Host(resources, _HOSTS.value, _TOPOLOGY.value, _ACCELERATOR.value),
            address=_ADDRESS.value,
            concurrent=_CONCURRENT.value,
        )
        folder = workdir / "trials"
        rows = leaderboard.make_rows(trials, defaults, folder, _METRIC.value, errors, largest=not _SMALLEST.value)
        write_json(workdir / "leaderboard.json", rows)
        text = leaderboard.describe(rows)
        (workdir / "leaderboard.md").write_text(format_markdown(text) + "\n", encoding="utf-8")
        leaderboard.draw(rows, _METRIC.value, workdir / "leaderboard.png")
        print(format_columns(text))


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", help_string="The recipe: a file of launch/configs.")
    _SPACE = flags.DEFINE_string("space", None, "The search space: a .py file with SPACE, or a .json file.")
    _WORKDIR = flags.DEFINE_string("workdir", "runs/sweep", "Folder of the sweep.")
    _NUM_TRIALS = flags.DEFINE_integer(
        "num_trials", None, "How many trials of the space, drawn by lot; all if not given."
    )
    _METRIC = flags.DEFINE_string("metric", "valid/accuracy", "Trials are compared by the area under its curve.")
    _SMALLEST = flags.DEFINE_bool("smallest", False, "Smaller is better, as of a loss.")
    _EARLY_STOPPING = flags.DEFINE_bool("early_stopping", True, "Stop trials that fall behind (ASHA).")
    _CPUS = flags.DEFINE_float("cpus", 1, "Cores of a trial, on each of its hosts.")
    _GPUS = flags.DEFINE_float("gpus", 0, "GPUs of a trial, on each of its hosts; a fraction shares one.")
    _TPUS = flags.DEFINE_float("tpus", 0, "TPU chips of a trial, on each of its hosts.")
    _HOSTS = flags.DEFINE_integer("hosts", 1, "Hosts of a trial.")
    _TOPOLOGY = flags.DEFINE_string("topology", None, "Of the TPU slice of a trial, such as 4x4.")
    _ACCELERATOR = flags.DEFINE_string("accelerator", None, "Of the TPU slice of a trial, such as TPU-V6E.")
    _CONCURRENT = flags.DEFINE_integer("concurrent", None, "Trials at a time; all there is room for if not given.")
    _ADDRESS = flags.DEFINE_string(
        "address", None, "Of a Ray cluster (auto: the one this host is in); none: this host."
    )
    _DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the command of every trial and stop.")
    flags.mark_flags_as_required(["config", "space"])
    app.run(main, flags_parser=parse_flags)
