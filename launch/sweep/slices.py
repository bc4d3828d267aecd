"""A trial on several hosts at once: Ray Train starts a process on each and joins them for JAX."""

import contextlib
import pathlib
import shlex
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ray.train import RunConfig, ScalingConfig
from ray.train.v2.jax import JaxTrainer
from ray.train.v2.jax.config import JaxConfig

from launch.sweep.trial import LOG


class Slice(NamedTuple):
    """The hosts of a trial. resources: of each host; topology, accelerator: of a TPU slice ("4x4", "TPU-V6E")."""

    hosts: int
    resources: dict[str, float]
    topology: str | None = None
    accelerator: str | None = None

    def start(self, command: Sequence[str], config: Mapping[str, Any], workdir: pathlib.Path) -> "_SliceJob":
        """Begins a run of a config, as the command would, in a workdir that all of the hosts see."""
        chips = bool(self.topology)
        # Ray's JAX backend joins processes for TPUs and GPUs; without either, JAX_PLATFORMS decides what they join as.
        joins = JaxConfig(use_tpu=not self.resources.get("GPU"), use_gpu=bool(self.resources.get("GPU")))
        trainer = JaxTrainer(
            _train,
            train_loop_config={"config": dict(config), "workdir": str(workdir), "command": shlex.join(command)},
            jax_config=joins,
            scaling_config=ScalingConfig(
                num_workers=self.hosts,
                resources_per_worker=self.resources,
                use_tpu=chips,
                topology=self.topology,
                accelerator_type=self.accelerator,
                placement_strategy="SPREAD" if chips else "PACK",
            ),
            run_config=RunConfig(name=workdir.name, storage_path=str(workdir.parent.parent / "train")),
        )
        return _SliceJob(trainer, workdir / LOG)


def _train(loop: Mapping[str, Any]) -> None:
    """What each host runs."""
    from ml_collections import ConfigDict

    from launch.train import run

    run(ConfigDict(loop["config"]), loop["workdir"], command=loop["command"])


class _SliceJob:
    """A `Job` whose hosts end when the process that started them does; they go on from their last checkpoint."""

    def __init__(self, trainer: JaxTrainer, log: pathlib.Path):
        self._trainer, self._log, self._code = trainer, log, None
        threading.Thread(target=self._fit, daemon=True).start()

    def _fit(self) -> None:
        try:
            with contextlib.redirect_stdout(None):
                self._trainer.fit()
        except Exception as error:  # of whatever kind: it is the trial's, not the sweep's
            with self._log.open("a") as file:
                file.write(f"{error}\n")
            self._code = 1
        else:
            self._code = 0

    def exit_code(self) -> int | None:
        return self._code

    def stop(self) -> None:
        pass
