"""A sweep on Ray Tune, which places trials, stops the worst early, and resumes after a kill."""

import functools
import hashlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from launch.sweep.host import Host
from launch.sweep.slices import start_slice
from launch.sweep.space import PlannedTrial
from launch.sweep.trial import LOG, Trial, Where, wait_for_end
from mnm_jax.training import Interrupted, read_metrics

_REDUCTION = 3  # the best third of the trials at a rung continues
_FIRST_RUNG = 11  # percent of a trial's updates: rungs at 11, 33 and 99
_LINES_SECONDS = 30.0


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
    flags: Sequence[str] = (),
) -> dict[str, str]:
    """Runs the unfinished trials of a sweep; returns the message of each failed trial, by name.

    Tune's state is stored in `state_folder`.

    Args:
      trials: the trials.
      workdir: folder of the sweep.
      metric: a metric of the evaluations, see `trial.scores`.
      largest: whether a larger metric is better.
      early_stopping: whether trials that fall behind are stopped (ASHA).
      host: resources of a trial.
      address: address of a Ray cluster; None: this machine alone.
      concurrent: largest number of concurrent trials; None: limited only by the resources of a trial.
      flags: see `Where`.

    Raises:
      ValueError: if `concurrent` is out of range.
      Interrupted: at Ctrl-C, after the running trials have ended. On Linux and without `address`, trials of one host
        each save their state; others resume from their last checkpoint.
    """
    bundles = host.bundles(concurrent)
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the runs write their own metrics
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would let `fit` return as if the sweep had ended
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Ray's new output ignores `verbose=0`
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `_Reporter` prints lines instead
    print(f"{len(trials)} trials; every {_LINES_SECONDS:.0f} s a line per running trial", flush=True)
    ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    where = Where(
        folder=str(workdir / "trials"),
        cwd=os.getcwd(),
        metric=metric,
        cpus=max(1, int(host.resources["CPU"])),
        start=functools.partial(start_slice, host) if host.joined else None,
        flags=flags,
    )
    resources = tune.PlacementGroupFactory(bundles)
    trainable = tune.with_resources(tune.with_parameters(Trial, where=where), resources)
    planned = [(trial.name, trial.command, trial.config) for trial in trials]
    path = state_folder(workdir, planned, metric, largest, early_stopping)
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
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=path.name,
                storage_path=str(path.parent),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the runs keep their own
                callbacks=[_Reporter(where.folder, metric)],
                verbose=0,
            ),
        )
    try:
        results = tuner.fit()
    except KeyboardInterrupt as error:
        print("interrupted; waits for the running trials.", flush=True)
        ray.shutdown()
        wait_for_end(pathlib.Path(where.folder))
        raise Interrupted("the sweep was interrupted; the same command resumes it.") from error
    finally:
        ray.shutdown()
    failed = [result for result in (results[i] for i in range(len(results))) if result.error is not None]
    return {(result.config or {})["trial"]["name"]: _reason(result.error) for result in failed}


def state_folder(workdir: pathlib.Path, *identity: Any) -> pathlib.Path:
    """Returns the folder of Tune's state, named by a hash of the trials and of the settings that Tune restores.

    With other trials or settings a sweep in the same workdir has a state of its own, and reuses the folders of trials
    that both have.
    """
    return workdir / "ray" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]


def _name(trial: Any) -> str:
    return trial.config["trial"]["name"]


def _reason(error: Exception | None) -> str:
    return str(error).strip().rsplit("\n", 1)[-1].removeprefix("RuntimeError: ")


class _Reporter(tune.Callback):
    """Prints a line when a trial starts or ends, and every 30 s a line per running trial.

    Tune stores it with the sweep and restores it on resuming.
    """

    def __init__(self, folder: str, metric: str):
        self._folder, self._metric = pathlib.Path(folder), metric
        self._due = 0.0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._print(f"{_name(trial)}: started, its output is in {self._folder / _name(trial) / LOG}")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        running = [trial for trial in trials if trial.status == "RUNNING"]
        if running and time.monotonic() >= self._due:
            self._due = time.monotonic() + _LINES_SECONDS
            for trial in running:
                self._print(f"{_name(trial)}: {self._progress(trial)}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        self._print_end(trials, trial, f"{result['progress']:.0f}% of its updates, area {result['area']:.4f}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._print_end(trials, trial, "failed")

    def _progress(self, trial: Any) -> str:
        """Returns the updates that a trial has made and the metric of its last evaluation."""
        lines = read_metrics(self._folder / _name(trial))
        if not lines:
            return "no metrics yet"
        values = [line[self._metric] for line in lines if self._metric in line]
        measured = f"{np.mean(np.array(values[-1], float)):.4f}" if values else "not measured yet"
        steps = trial.config["trial"]["config"]["training"]["steps"]
        return f"update {lines[-1]['step']:,} of {steps:,}, {self._metric} {measured}"

    def _print_end(self, trials: list[Any], trial: Any, what: str) -> None:
        ended = sum(other.is_finished() or other is trial for other in trials)
        self._print(f"{_name(trial)}: {what}; {ended} have ended")

    def _print(self, line: str) -> None:
        print(line, flush=True)
