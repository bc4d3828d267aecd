"""The training program: updates, metrics, evaluations, checkpoints, and resuming an interrupted run.

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

from mnm_jax.training import _processes as processes
from mnm_jax.training._checkpoints import check_notes, restore_checkpoint, save_checkpoint
from mnm_jax.training._config import TrainConfig
from mnm_jax.training._evaluate import make_evaluate
from mnm_jax.training._parallel import make_parallel_update, make_placement, pad_batch, state_shardings
from mnm_jax.training._progress import ProgressBar
from mnm_jax.training._signals import Interrupted, StopRequest, stop_request
from mnm_jax.training._state import init_state, merge_model, split_model
from mnm_jax.training._task import Loader, Task, optional_member
from mnm_jax.training._update import TrainingFault, UpdateMetrics, describe_fault
from mnm_jax.training._writers import MetricWriter, read_metrics

# Updates sent to the devices before their results are awaited: enough to keep them busy, few enough to stop soon.
_UPDATES_AHEAD = 8
# Several processes decide together whether to stop or to save, which waits for the devices. Upper limits between two
# decisions: seconds (or one update that takes longer), and updates.
_SECONDS_PER_DECISION = 5.0
_UPDATES_PER_DECISION = 16
# Metrics shown next to the progress bar, with their short names.
_SHOWN = {"train/loss": "loss", "valid/accuracy": "accuracy"}


class TrainResult(NamedTuple):
    """Result of a finished run.

    Attributes:
      params: leaves `[S, ...]`, one entry per seed.
      graphdef: the model without its parameters.
      metrics: metrics after the last update, `[S]` by name: "train/loss", "valid/accuracy", "test/accuracy", ...
      steps: number of updates made.
      seconds: seconds of training, compiling and evaluating, over all starts of the run.
    """

    params: Any
    graphdef: nnx.GraphDef
    metrics: dict[str, np.ndarray]
    steps: int
    seconds: float

    def model(self, index: int = 0) -> Any:
        """Returns the trained model of one seed; `index` counts from 0."""
        return merge_model(self.graphdef, self.params, index)


def train(
    task: Task,
    make_model: Callable[[nnx.Rngs], nnx.Module],
    config: TrainConfig,
    workdir: str | os.PathLike,
    *,
    parallel: str = "jit",
    devices: Sequence[jax.Device] | None = None,
) -> TrainResult:
    """Trains a model on a task, or resumes the run in `workdir`.

    A run that was interrupted and resumed ends with the same numbers as an uninterrupted one. On SIGTERM or Ctrl-C the
    update in progress (and a running evaluation) is completed, and the state is saved. A Ctrl-C after this
    first signal stops the program at once; another SIGTERM changes nothing.

    A finished run is trained further only if `config.steps` is increased. With the schedule "constant" it then ends
    with the numbers of a run of that many updates. With the other schedules the learning rate, which has fallen to 0,
    rises to its value in the schedule of the new number and falls to 0 again, so the numbers differ from such a run's.

    Args:
      task: the task.
      make_model: called as `make_model(rngs)` for each seed. The model is called as
        `model(batch.inputs, **batch.flags)`: with `mask`, and with the other flags that the task's batches have. It
        returns `logits [T, B, C]` and `meta_loss [T, B]` or None as attributes, as `SequenceModel` does. For a task
        with `carries` it also takes a keyword `carry`, returns the last carry as attribute `carry`, and has a method
        `start(batch_size)`. A model with an attribute `dropout` above 0 takes the seeds of its examples as `noise`.
      config: settings. The caller ensures that a workdir is used with one config only, except for `steps`.
      workdir: folder of the run; receives `metrics.jsonl`, `tensorboard/` and `checkpoints/`.
      parallel: "jit", "pmap" or "fsdp": how several devices share the work. "jit" lets the compiler divide the batch,
        "pmap" makes the sums over devices explicit, "fsdp" also divides parameters and optimiser state.
      devices: devices to use; None: all devices of all processes.

    Raises:
      ImportError: if a package of the extra "train" is not installed.
      BlockingIOError: if another process trains in `workdir`; the message names it.
      Interrupted: if a signal stopped the run; the state was saved.
      OSError: if a file cannot be written, for example to a full disk; the message names it. Also if another process
        fails; the message names its number and its error.
      TrainingFault: if a loss, gradient or updated parameter was not finite. That seed stopped before the update (other
        seeds trained until the next log line, where the fault is noticed), and the state was saved.
      ValueError: if settings contradict each other, the model holds an array that is no parameter, all checkpoints are
        damaged, or the processes do not see the same checkpoints.
    """
    devices = list(devices or jax.devices())
    if (task.sample is None) == (task.loader is None):
        raise ValueError(f"task {task.name} must have either sample or loader; set the other to None.")
    if optional_member(task, "carries") and optional_member(task, "play"):
        raise ValueError(
            f"task {task.name} cannot have both carries and play, since every play begins a new sequence: set carries "
            "to False, or play to None."
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.lock_workdir(workdir))
        stop = stack.enter_context(stop_request())
        run = _Run(task, make_model, config, pathlib.Path(workdir), parallel, devices, stop)
        stack.callback(run.close)
        try:
            return run.train()
        except jax.errors.UnexpectedTracerError as error:
            raise ValueError(
                "the model holds an array that was computed while it was built, which its compiled programs cannot "
                "use: compute the array in the call, or keep it in a closure as an array of NumPy."
            ) from error


class _Run:
    """One start of a run, with the objects that live from update to update."""

    def __init__(
        self,
        task: Task,
        make_model: Callable[[nnx.Rngs], nnx.Module],
        config: TrainConfig,
        workdir: pathlib.Path,
        parallel: str,
        devices: list[jax.Device],
        stop: StopRequest,
    ) -> None:
        self.config, self.workdir, self.stop = config, workdir, stop
        self.placement = make_placement(devices)
        self.graphdef = split_model(make_model)
        optimizer = config.make_optimizer()
        streams = config.batch_size if optional_member(task, "carries") else 0
        init = functools.partial(init_state, make_model, optimizer, config.seed, config.seeds, streams)
        like = jax.eval_shape(init)
        self.update = make_parallel_update(
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
        self.evaluate = make_evaluate(self.graphdef, task, devices, placed=True)
        share = {"part": (jax.process_index(), jax.process_count())} if jax.process_count() > 1 else {}
        self.loader: Loader | None = task.loader and task.loader(config.seed, config.batch_size, **share)

        self.started = self.last_save = time.monotonic()
        saved = processes.first_process_first(lambda: restore_checkpoint(workdir, like))
        self.step = saved.step if saved else 0
        notes: dict[str, Any] = saved.notes if saved else {"seconds": 0.0}
        processes.check_same_start(self.step, saved and saved.state, notes.get("loader"))
        if self.step > config.steps:
            raise ValueError(f"{workdir} was trained for {self.step} updates, got steps={config.steps}; increase it.")
        shardings = state_shardings(like, self.placement, parallel)
        if saved is None and parallel == "fsdp":  # the whole state may not fit on one device
            self.state = jax.jit(init, out_shardings=shardings)()
        else:
            self.state = processes.to_devices(saved.state if saved else init(), shardings)
        self.seconds_before = notes["seconds"]
        if self.loader is not None and saved:
            self.loader.set_state(notes["loader"])
        check_notes(self.position())
        self.shapes: set = set()  # batch shapes for which the update is compiled
        self.ahead: collections.deque = collections.deque()
        self.decided, self.next_decision = (self.step, time.monotonic()), self.step + 1
        first = processes.is_first_process()
        # The update at the last check for a fault, and the data's position there, from which `explain_fault` reads.
        self.checked = notes.get("checked") or {"step": self.step, "loader": self.position()}
        self.writer: MetricWriter | None = None
        with processes.common_errors():
            if first:
                self.writer = MetricWriter(workdir, step=self.step, saved=notes.get("metrics"))
                written = [line["seconds"] for line in self.writer.lines[-1:]]  # later than a checkpoint: after a test
                self.seconds_before = max([self.seconds_before, *written])
        self.progress = ProgressBar(config.steps, self.step, quiet=not first)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        with contextlib.suppress(OSError):  # of a terminal that is gone: it would hide the error that ends the run
            self.progress.close()

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def train(self) -> TrainResult:
        config = self.config
        self.stop_on_fault()
        while self.step < config.steps:
            metrics = self.one_update()
            last = self.step == config.steps
            log, evaluate = (last or self.step % every == 0 for every in (config.log_every, config.eval_every))
            stop, save = self.decide(now=last)
            if log or evaluate or save:
                self.stop_on_fault()
            if log:
                self.write({f"train/{name}": np.asarray(value) for name, value in metrics._asdict().items()})
            if evaluate:
                self.write_evaluation("valid")
                stop, save = self.decide(now=True)  # a signal may have arrived during the evaluation
            if save:
                self.save()
            if stop:
                self.stop_now()
        self.save()  # before the evaluation, which may take long
        tested = any(name.startswith("test/") for name in self.last_lines())
        if not processes.any_process(processes.is_first_process() and tested):
            self.write_evaluation("test")
        self.flush()
        if self.decide(now=True)[0]:
            self.stop_now()
        lines = self.last_lines()
        # Only the first process can rely on these lines: other processes may read them from a shared disk with a delay.
        seconds = float(lines.pop("seconds", self.seconds))
        params = jax.tree.map(processes.to_host, self.state.params)
        return TrainResult(params=params, graphdef=self.graphdef, metrics=lines, steps=self.step, seconds=seconds)

    def decide(self, *, now: bool) -> tuple[bool, bool]:
        """Returns (stop, save), the same in all processes: both False until the next decision is due, unless `now`."""
        several = jax.process_count() > 1
        if several and not now and self.step < self.next_decision:
            return False, False
        while several and self.ahead:
            self.ahead.popleft().block_until_ready()
        before, self.decided = self.decided, (self.step, time.monotonic())
        updates, seconds = (b - a for a, b in zip(before, self.decided, strict=True))
        wait = min(max(1, int(_SECONDS_PER_DECISION * updates / max(seconds, 1e-6))), _UPDATES_PER_DECISION)
        due = self.decided[1] - self.last_save >= self.config.checkpoint_seconds
        stop, save, sooner = processes.largest(self.stop.name is not None, due, -wait)
        self.next_decision = self.step - sooner
        return bool(stop), bool(save or stop)

    def one_update(self) -> UpdateMetrics:
        batch = None
        if self.loader is not None:
            local_devices = self.placement.divided.num_devices // jax.process_count()
            # Streams with a carry cannot be padded: the update refuses a number that `accumulate` does not divide.
            parts = 1 if self.state.carry is not None else self.config.accumulate
            own = pad_batch(next(self.loader), local_devices * parts)
            batch = processes.join_batches(own, self.placement.divided)
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))
        compiled = shapes in self.shapes
        self.shapes.add(shapes)
        with contextlib.nullcontext() if compiled else self.progress.pause():
            self.state, metrics = self.update(self.state, batch)
            self.ahead.append(metrics.loss)
            while len(self.ahead) > (_UPDATES_AHEAD if compiled else 0):
                self.ahead.popleft().block_until_ready()
        self.step += 1
        self.progress.update(self.step, counted=compiled)
        return metrics

    def position(self) -> Any:
        return self.loader and self.loader.get_state()

    def write(self, metrics: dict[str, np.ndarray]) -> None:
        with processes.common_errors():
            if self.writer is not None:
                self.writer.write(self.step, self.seconds, metrics)
        shown = {_SHOWN[name]: float(value.mean()) for name, value in metrics.items() if name in _SHOWN}
        self.progress.update(self.step, shown)

    def write_evaluation(self, split: str) -> None:
        with self.progress.pause():
            self.write(self.evaluate(self.state.params, split, self.config.batch_size))

    def last_lines(self) -> dict[str, np.ndarray]:
        """Returns all metrics on disk for the current update, with NaN for null; later lines replace earlier ones."""
        merged: dict[str, Any] = {}
        for line in self.writer.lines if self.writer else read_metrics(self.workdir):
            if line["step"] == self.step:
                merged |= line
        return {name: np.asarray(value, np.float64) for name, value in merged.items() if name != "step"}

    def save(self) -> pathlib.Path:
        with self.progress.pause():
            self.flush()
            run = {"seconds": self.seconds, "loader": self.position(), "checked": self.checked}
            run["metrics"] = self.writer.lines if self.writer else []
            path = save_checkpoint(self.workdir, self.step, self.state, run)
        self.last_save = time.monotonic()
        return path

    def flush(self) -> None:
        with processes.common_errors():
            if self.writer is not None:
                self.writer.flush()

    def stop_on_fault(self) -> None:
        fault = describe_fault(self.state, self.config.seed)
        if fault is not None:
            raise TrainingFault(
                f"{fault} The state before that update is saved in {self.save()}; explain_fault finds the cause."
            )
        self.checked = {"step": self.step, "loader": self.position()}

    def stop_now(self) -> NoReturn:
        cause = self.stop.name or "a signal to another process"
        raise Interrupted(
            f"stopped by {cause} at update {self.step} of {self.config.steps}; "
            f"the state is saved in {self.workdir}: run the same command again to resume."
        )
