"""The training program: steps, metrics, evaluations, checkpoints, and going on where a run was cut off.

Shape letter: `S` seeds.
"""

import collections
import contextlib
import functools
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from flax import nnx

from mnm_jax.training import _checkpoints as checkpoints
from mnm_jax.training import _hosts as hosts
from mnm_jax.training._config import TrainConfig
from mnm_jax.training._evaluate import make_evaluate
from mnm_jax.training._parallel import make_parallel_step, make_placement, pad_batch, place_state
from mnm_jax.training._progress import ProgressBar
from mnm_jax.training._signals import Interrupted, StopRequest, stop_request
from mnm_jax.training._state import TrainState, init_state, split_model
from mnm_jax.training._step import StepMetrics, TrainingFault, describe_fault
from mnm_jax.training._task import Loader, Task
from mnm_jax.training._writers import MetricWriter, read_metrics

# Steps handed to the devices before their results are awaited: enough to keep them busy, few enough to stop soon.
_STEPS_AHEAD = 8
# Steps between two times that several processes ask each other whether to stop or to save.
_STEPS_UNASKED = 16
# Metrics beside the progress bar, where a task has them, and their names there.
_SHOWN = {"train/loss": "loss", "valid/accuracy": "accuracy"}


class TrainResult(NamedTuple):
    """What a finished run leaves.

    params: leaves `[S, ...]`; `nnx.merge(graphdef, jax.tree.map(lambda x: x[i], params))` is the model of seed i.
    metrics: the last step's, `[S]` by name: "train/loss", "valid/accuracy", "test/accuracy", ...
    seconds: of training, compiling and evaluating, over all restarts.
    """

    params: Any
    graphdef: nnx.GraphDef
    metrics: dict[str, np.ndarray]
    steps: int
    seconds: float


def train(
    task: Task,
    make_model: Callable[[nnx.Rngs], nnx.Module],
    config: TrainConfig,
    workdir: str | os.PathLike,
    *,
    parallel: str = "jit",
    devices: Sequence[jax.Device] | None = None,
) -> TrainResult:
    """Trains a model on a task, or goes on with the run that lies in `workdir`.

    A run that was cut off and started again ends with the same numbers as one that was not; a finished run is not
    trained further. On SIGTERM or Ctrl-C the step in progress (and the evaluation, if one runs) ends and the state
    is saved; a second signal acts at once.

    Args:
        make_model: called as `make_model(rngs)` for each seed; the model is called as `model(inputs, mask, fork)`
            (fields of `Batch`; fork may be None) and returns `logits [T, B, C]` and `meta_loss [T, B]` or None as
            attributes, as `SequenceModel` does.
        config: settings. The caller sees to it that a workdir is used with one config only.
        workdir: gets `metrics.jsonl`, `tensorboard/` and `checkpoints/`.
        parallel: "jit", "pmap" or "fsdp", see `make_parallel_step`.
        devices: which devices to use; all of all processes if None.

    Raises:
        TrainingFault: a loss, gradient or updated parameter was not finite. The seed stopped before that step (the
            others went on to the next log line, where it is noticed), and the state was saved.
        Interrupted: a signal arrived; the state was saved.
        ValueError: settings that do not fit together, or damaged checkpoints.
    """
    devices = list(devices or jax.devices())
    if (task.sample is None) == (task.loader is None):
        raise ValueError(f"task {task.name} must have either sample or loader; set the other to None.")
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_request())
        run = _Run(task, make_model, config, pathlib.Path(workdir), parallel, devices, stop)
        stack.callback(run.close)
        return run.train()


class _Run:
    """One start of a run: what has to be kept between steps, and nothing that decides a number."""

    def __init__(
        self,
        task: Task,
        make_model: Callable[[nnx.Rngs], nnx.Module],
        config: TrainConfig,
        workdir: pathlib.Path,
        parallel: str,
        devices: list[jax.Device],
        stop: StopRequest,
    ):
        self.config, self.workdir, self.stop = config, workdir, stop
        self.placement = make_placement(devices)
        self.graphdef = split_model(make_model)
        optimizer = config.make_optimizer()
        init = functools.partial(init_state, make_model, optimizer, config.seed, config.seeds)
        like = jax.eval_shape(init)
        self.update = make_parallel_step(
            self.graphdef,
            task,
            optimizer,
            meta_weight=config.meta_weight,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            devices=devices,
            parallel=parallel,
            state=like,
        )
        lies = place_state(like, self.placement, parallel)
        self.evaluate = make_evaluate(self.graphdef, task, devices, placed=True)
        share = {"part": hosts.part()} if jax.process_count() > 1 else {}
        self.loader: Loader | None = task.loader and task.loader(config.seed, config.batch_size, **share)

        self.started = self.last_save = time.monotonic()
        saved = hosts.in_turn(lambda: checkpoints.restore(workdir, like))
        self.step, state, meta = saved or (0, init(), {"seconds": 0.0})
        if self.step > config.steps:
            raise ValueError(f"{workdir} was trained for {self.step} steps, got steps={config.steps}; raise it.")
        self.state: TrainState = hosts.put(state, lies)
        self.seconds_before = meta["seconds"]
        if self.loader is not None and saved:
            self.loader.set_state(meta["loader"])
        self.shapes: set = set()  # of batches for which the step is compiled
        self.ahead: collections.deque = collections.deque()
        self.writer = MetricWriter(workdir, step=self.step) if hosts.is_first() else None
        self.progress = ProgressBar(config.steps, self.step, quiet=not hosts.is_first())

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.progress.close()

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def train(self) -> TrainResult:
        config = self.config
        self.stop_on_fault()
        while self.step < config.steps:
            metrics = self.one_step()
            last = self.step == config.steps
            log, evaluate = (last or self.step % every == 0 for every in (config.log_every, config.eval_every))
            stop, save = self.asked()
            if log or evaluate or save:
                self.stop_on_fault()
            if log:
                self.write({f"train/{name}": np.asarray(value) for name, value in metrics._asdict().items()})
            if evaluate:
                self.write_evaluation("valid")
                stop, save = self.asked()  # it may have come while evaluating
            if save:
                self.save()
            if stop:
                self.stop_now()
        tested = any(name.startswith("test/") for name in self.last_lines())
        if not hosts.agree(hosts.is_first() and tested)[0]:
            self.write_evaluation("test")
        self.save()
        if self.asked()[0]:
            self.stop_now()
        metrics = self.last_lines()
        # The first process has what it wrote; to the others a shared file system may show it later.
        seconds = float(metrics.pop("seconds", self.seconds))
        params = jax.tree.map(hosts.to_host, self.state.params)
        return TrainResult(params, self.graphdef, metrics, self.step, seconds)

    def asked(self) -> tuple[bool, bool]:
        """(whether to stop, whether to save), the same in all processes; several ask each other now and then."""
        if jax.process_count() > 1 and self.step % _STEPS_UNASKED and self.step < self.config.steps:
            return False, False
        due = time.monotonic() - self.last_save >= self.config.checkpoint_seconds
        stop, save = hosts.agree(self.stop.name is not None, due)
        return stop, save or stop

    def one_step(self) -> StepMetrics:
        batch = None
        if self.loader is not None:
            own = pad_batch(next(self.loader), self.placement.divided.num_devices // jax.process_count())
            batch = hosts.join(own, self.placement.divided)
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))
        compiled = shapes in self.shapes
        self.shapes.add(shapes)
        with contextlib.nullcontext() if compiled else self.progress.pause():
            self.state, metrics = self.update(self.state, batch)
            self.ahead.append(metrics.loss)
            while len(self.ahead) > (_STEPS_AHEAD if compiled else 0):
                self.ahead.popleft().block_until_ready()
        self.step += 1
        self.progress.update(self.step, counted=compiled)
        return metrics

    def write(self, metrics: dict[str, np.ndarray]) -> None:
        if self.writer is not None:
            self.writer.write(self.step, self.seconds, metrics)
        shown = {_SHOWN[name]: float(value.mean()) for name, value in metrics.items() if name in _SHOWN}
        self.progress.update(self.step, shown)

    def write_evaluation(self, split: str) -> None:
        with self.progress.pause():
            self.write(self.evaluate(self.state.params, split, self.config.batch_size))

    def last_lines(self) -> dict[str, np.ndarray]:
        """Everything on disk about the present step, later lines over earlier ones; null becomes NaN."""
        lines = [line for line in read_metrics(self.workdir) if line["step"] == self.step]
        merged = functools.reduce(lambda a, b: a | b, lines, {})
        return {name: np.asarray(value, np.float64) for name, value in merged.items() if name != "step"}

    def save(self) -> pathlib.Path:
        with self.progress.pause():
            run = {"seconds": self.seconds, "loader": self.loader and self.loader.get_state()}
            path = checkpoints.save(self.workdir, self.step, self.state, run)
        self.last_save = time.monotonic()
        return path

    def stop_on_fault(self) -> None:
        fault = describe_fault(self.state, self.config.seed)
        if fault is not None:
            raise TrainingFault(
                f"{fault} The state before that step is saved in {self.save()}. "
                "Lower learning_rate or set clip_norm, and train in a new workdir."
            )

    def stop_now(self) -> NoReturn:
        raise Interrupted(
            f"stopped by {self.stop.name or 'a signal to another process'} at step {self.step} of {self.config.steps}; "
            f"all is saved in {self.workdir}: run the same command again to go on."
        )
