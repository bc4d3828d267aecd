"""Trains many runs of one recipe with different settings and ranks the settings.

    python -m launch.sweep --config=launch/configs/dictionary.py --space=launch/configs/dictionary_space.py \
        --num_trials=8 --workdir=runs/sweep [--config.KEY=VALUE ...] [--dry_run]

A space is a Python file with `SPACE`, or a JSON file; `launch/sweep/space.py` describes its content. Each trial is a
run in `WORKDIR/trials/NAME/`, as with `launch.train`, with its output in `log.txt`; the unchanged recipe comes first.
Every 30 s a line per running trial shows its updates and metric. Trials that fall behind are stopped early (ASHA).
Started again, the sweep resumes: finished trials are left unchanged, interrupted trials continue, failed trials are
tried again; --concurrent may differ. Trials of more updates need another --workdir. At the end the sweep writes
`leaderboard.json`, `leaderboard.md` and `leaderboard.png`. Needs `pip install '.[train,sweep]'`.
"""

import pathlib
import shlex

from absl import flags

from launch.command import run_command
from launch.runs.config_flag import define_config
from launch.sweep.host import Host
from launch.sweep.run import is_smaller_better, plan_trials, read_space, run_sweep
from launch.sweep.space import recipe_flags


def main() -> None:
    words = recipe_flags(flags.FLAGS["config"])
    workdir, config = pathlib.Path(_WORKDIR.value), _CONFIG.value
    trials = plan_trials(read_space(_SPACE.value), _NUM_TRIALS.value, config, words, workdir)
    trial_flags = [] if flags.FLAGS["compilation_cache"].value else ["--nocompilation_cache"]
    if _DRY_RUN.value:
        for trial in trials:
            print(shlex.join([*trial.command, *trial_flags]))
        return
    if _ACCELERATOR.value and not _TOPOLOGY.value and _HOSTS.value == 1:
        raise ValueError(f"--accelerator={_ACCELERATOR.value} names a TPU slice: give its --topology, or leave it out.")
    resources = {"CPU": _CPUS.value, "GPU": _GPUS.value, "TPU": _TPUS.value}
    host = Host(resources=resources, hosts=_HOSTS.value, topology=_TOPOLOGY.value, accelerator=_ACCELERATOR.value)
    smallest = is_smaller_better(_METRIC.value) if _SMALLEST.value is None else _SMALLEST.value
    print(f"trials are compared by the area under {_METRIC.value}; {'smaller' if smallest else 'larger'} is better")
    table = run_sweep(
        trials,
        config,
        workdir.absolute(),
        host,
        metric=_METRIC.value,
        largest=not smallest,
        early_stopping=_EARLY_STOPPING.value,
        address=_ADDRESS.value,
        concurrent=_CONCURRENT.value,
        flags=trial_flags,
    )
    print(table)


if __name__ == "__main__":
    _CONFIG = define_config()
    _SPACE = flags.DEFINE_string("space", None, "A .py file with SPACE, or a .json file.", required=True)
    _WORKDIR = flags.DEFINE_string("workdir", "runs/sweep", "Folder of the sweep.")
    _NUM_TRIALS = flags.DEFINE_integer("num_trials", None, "Trials drawn at random from the space; all if not given.")
    _METRIC = flags.DEFINE_string("metric", "valid/accuracy", "Trials are compared by the area under its curve.")
    _SMALLEST = flags.DEFINE_bool("smallest", None, "Smaller is better; default: if the metric ends in loss or error.")
    _EARLY_STOPPING = flags.DEFINE_bool("early_stopping", True, "Stop trials that fall behind (ASHA).")
    _CPUS = flags.DEFINE_float("cpus", 1, "Cores per trial, on each of its hosts.")
    _GPUS = flags.DEFINE_float("gpus", 0, "GPUs per trial, on each of its hosts; a fraction shares one.")
    _TPUS = flags.DEFINE_float("tpus", 0, "TPU chips per trial, on each of its hosts.")
    _HOSTS = flags.DEFINE_integer("hosts", 1, "Hosts per trial.")
    _TOPOLOGY = flags.DEFINE_string("topology", None, "Topology of the TPU slice of a trial, such as 4x4.")
    _ACCELERATOR = flags.DEFINE_string("accelerator", None, "Accelerator of the TPU slice of a trial, such as TPU-V6E.")
    _CONCURRENT = flags.DEFINE_integer("concurrent", None, "Most concurrent trials; by default as many as fit.")
    _ADDRESS = flags.DEFINE_string("address", None, "Ray cluster (auto: that of this host); default: this host.")
    _DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the command of every trial and stop.")
    run_command(main, "write flags as --NAME=VALUE.")
