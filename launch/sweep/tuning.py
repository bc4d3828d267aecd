"""A sweep on Ray Tune, which places trials, stops the worst early, and resumes after a kill."""

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from launch.sweep.space import PlannedTrial
from launch.sweep.trial import Job, Trial, Where

_REDUCTION = 3  # the best third of the trials at a rung continues
_FIRST_RUNG = 11  # percent of a trial's updates: rungs at 11, 33 and 99


class Host(NamedTuple):
    """Resources of a trial.

    Attributes:
      resources: CPU, GPU and TPU of each host.
      hosts: number of hosts, joined by Ray Train if several.
      topology: topology of a TPU slice, such as "4x4"; `hosts` is then the number of its hosts.
      accelerator: accelerator of the TPU slice, such as "TPU-V6E".
    """

    resources: dict[str, float]
    hosts: int = 1
    topology: str | None = None
    accelerator: str | None = None

    @property
    def start(self) -> Callable[..., Job] | None:
        """Function that starts a trial, for the field `start` of `Where`; None for a process on one host."""
        if self.hosts == 1 and self.topology is None:
            return None
        from launch.sweep.slices import Slice

        slice_of_hosts = Slice(
            hosts=self.hosts, resources=self._wanted, topology=self.topology, accelerator=self.accelerator
        )
        return slice_of_hosts.start

    @property
    def room(self) -> dict[str, float]:
        """Resources that Tune reserves for a trial; for several hosts Ray Train reserves them."""
        return self._wanted if self.start is None else {"node:__internal_head__": 0.001}

    @property
    def _wanted(self) -> dict[str, float]:
        return {name: number for name, number in self.resources.items() if number}


def run(
    trials: Sequence[PlannedTrial],
    workdir: pathlib.Path,
    *,
    metric: str,
    largest: bool = True,
    early_stopping: bool = True,
    host: Host,
    address: str | None = None,
    concurrent: int | None = None,
) -> dict[str, str]:
    """Runs the unfinished trials of a sweep; returns the message of each failed trial, by name.

    Tune's state is stored in `workdir/ray/`, under a hash of the trials: other trials in the same workdir are a
    separate sweep, which reuses the folders of trials that both have.

    Args:
      trials: the trials.
      workdir: folder of the sweep.
      metric: a metric of the evaluations, see `trial.scores`.
      largest: whether a larger metric is better.
      early_stopping: whether trials that fall behind are stopped (ASHA).
      host: resources of a trial.
      address: address of a Ray cluster; None: this machine alone.
      concurrent: largest number of concurrent trials; None: limited only by the resources of a trial.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the runs write their own metrics
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Ray's new output ignores `verbose=0`
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `_Reporter` prints one line instead
    ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    where = Where(
        folder=str(workdir / "trials"),
        cwd=os.getcwd(),
        metric=metric,
        cpus=max(1, int(host.resources["CPU"])),
        start=host.start,
    )
    trainable = tune.with_resources(tune.with_parameters(Trial, where=where), tune.PlacementGroupFactory([host.room]))
    name = hashlib.sha256(json.dumps([trials, metric]).encode()).hexdigest()[:8]
    path = workdir / "ray" / name
    if tune.Tuner.can_restore(str(path)):
        tuner = tune.Tuner.restore(str(path), trainable, resume_unfinished=True, restart_errored=True)
    else:
        asha = ASHAScheduler(time_attr="progress", max_t=100, grace_period=_FIRST_RUNG, reduction_factor=_REDUCTION)
        tuner = tune.Tuner(
            trainable,
            param_space={"trial": tune.grid_search([trial._asdict() for trial in trials])},
            tune_config=tune.TuneConfig(
                metric="area",
                mode="max" if largest else "min",
                scheduler=asha if early_stopping else None,
                max_concurrent_trials=concurrent,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(path.parent),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the runs keep their own
                callbacks=[_Reporter()],
                verbose=0,
            ),
        )
    try:
        results = tuner.fit()
    finally:
        ray.shutdown()
    failed = [result for result in (results[i] for i in range(len(results))) if result.error is not None]
    return {(result.config or {})["trial"]["name"]: _reason(result.error) for result in failed}


def _name(trial: Any) -> str:
    return trial.config["trial"]["name"]


def _reason(error: Exception | None) -> str:
    return str(error).strip().rsplit("\n", 1)[-1].removeprefix("RuntimeError: ")


class _Reporter(tune.Callback):
    """Prints a line when a trial has ended."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        self._print(trials, trial, f"{result['progress']:.0f}% of its updates, area {result['area']:.4f}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._print(trials, trial, "failed")

    def _print(self, trials: list[Any], trial: Any, what: str) -> None:
        ended = sum(other.is_finished() or other is trial for other in trials)
        print(f"{_name(trial)}: {what}; {ended} have ended", flush=True)
