"""A trial on several hosts: Ray Train starts a process on each and joins them for JAX."""

import contextlib
import pathlib
import shlex
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ray.train.v2.api.config import RunConfig, ScalingConfig
from ray.train.v2.jax import JaxTrainer
from ray.train.v2.jax.config import JaxConfig

from launch.sweep.host import Host
from launch.sweep.trial import LOG


def start_slice(host: Host, command: Sequence[str], config: Mapping[str, Any], workdir: pathlib.Path) -> "_SliceJob":
    """Starts a run of a config on the hosts of a trial, as `command` would, in a workdir that all hosts share."""
    chips, wanted = bool(host.topology), host.wanted
    trainer = JaxTrainer(
        _train,
        train_loop_config={"config": dict(config), "workdir": str(workdir), "command": shlex.join(command)},
        # Ray's JAX backend joins processes for TPUs and GPUs; without either, JAX_PLATFORMS decides.
        jax_config=JaxConfig(use_tpu="GPU" not in wanted, use_gpu="GPU" in wanted),
        scaling_config=ScalingConfig(
            num_workers=host.hosts,
            resources_per_worker=wanted,
            use_tpu=chips,
            topology=host.topology,
            accelerator_type=host.accelerator,
            placement_strategy="SPREAD" if chips else "PACK",
        ),
        run_config=RunConfig(name=workdir.name, storage_path=str(workdir.parent.parent / "train")),
    )
    return _SliceJob(trainer, workdir / LOG)


def _train(loop: Mapping[str, Any]) -> None:
    """Trains on one host; Ray Train calls it on each."""
    from ml_collections import ConfigDict

    from launch.train import run

    run(ConfigDict(loop["config"]), loop["workdir"], command=loop["command"])


class _SliceJob:
    """A `Job` whose hosts end with the process that started them; a new start resumes from the last checkpoint."""

    def __init__(self, trainer: JaxTrainer, log: pathlib.Path):
        self._trainer, self._log = trainer, log
        self._code: int | None = None
        threading.Thread(target=self._fit, daemon=True).start()

    def _fit(self) -> None:
        try:
            with contextlib.redirect_stdout(None):
                self._trainer.fit()
        except Exception as error:  # of any kind: the trial fails, the sweep continues
            with self._log.open("a") as file:
                file.write(f"{error}\n")
            self._code = 1
        else:
            self._code = 0

    def exit_code(self) -> int | None:
        return self._code

    def stop(self) -> None:
        pass
