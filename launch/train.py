"""Trains a model on a task, or resumes the run in a workdir.

    python -m launch.train --config=launch/configs/dictionary.py --workdir=runs/dictionary [--config.KEY=VALUE ...]

On several hosts, start the same command on each, with `--coordinator=HOST:PORT --num_processes=N --process_id=I`, or
with `--coordinator=auto` if the environment provides these values (TPU pods, SLURM). All hosts need the same workdir.

The run writes `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` and `figures/` into the workdir and, at
its end, `params.npz` (the parameters: all that `launch.evaluate` needs besides the config) and `summary.json`. Another
process that is started in the same workdir meanwhile ends with a message that names this one.

A run that stopped at a NaN continues from its newest checkpoint before it, with another learning rate, by
`--after_fault --config.training.learning_rate=RATE`; other settings of the optimiser may be changed in the same way.
`earlier_configs.json` keeps the earlier settings. `python -m launch.find_nan` names the operation that caused the NaN.
"""

import os
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from launch.command import run_command
from launch.reporting.task_errors import end_table
from launch.runs.config_flag import define_config
from launch.runs.connect import TIMEOUT, connect
from launch.runs.train import train_run
from mnm_jax.training import PARALLEL, first_process_first, is_first_process


def run(
    config: ConfigDict, workdir: str | os.PathLike, parallel: str = "jit", command: str | None = None, **options: Any
) -> dict[str, Any]:
    """Trains a run, prints its table, draws its figures and returns its summary; see `launch.runs.train.train_run`."""
    summary = train_run(config, workdir, parallel, command, **options)
    first_process_first(lambda: _report(summary, workdir) if is_first_process() else None)
    return summary


def _report(summary: dict[str, Any], workdir: str | os.PathLike) -> None:
    from launch.reporting.draw import report_run  # matplotlib would delay the first update by half a second

    first = summary["config"]["training"].get("seed", 0)
    print(end_table(summary["metrics"], range(first, first + summary["seeds"])))
    report_run(workdir)


def main() -> None:
    connect(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _COORDINATOR_TIMEOUT.value)
    run(_CONFIG.value, _WORKDIR.value, _PARALLEL.value, after_fault=_AFTER_FAULT.value)


if __name__ == "__main__":
    _CONFIG = define_config()
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    _PARALLEL = flags.DEFINE_enum("parallel", "jit", PARALLEL, "Division of the work over the devices.")
    _AFTER_FAULT = flags.DEFINE_bool(
        "after_fault", False, "Continue a run that stopped at a NaN from its last checkpoint before it."
    )
    _COORDINATOR = flags.DEFINE_string("coordinator", None, "For several processes: HOST:PORT of process 0, or auto.")
    _NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
    _PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
    _COORDINATOR_TIMEOUT = flags.DEFINE_integer(
        "coordinator_timeout", TIMEOUT, "Seconds to wait for all processes.", lower_bound=1
    )
    run_command(main, "settings are given as --config.KEY=VALUE.")
