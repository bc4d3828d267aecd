"""Computes metrics of trained parameters over a task's evaluation sets.

Shape letters: `S` seeds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from mnm_jax._checks import check_choice, check_sizes
from mnm_jax.training._parallel import make_placement, map_seeds, place_batch
from mnm_jax.training._processes import to_devices
from mnm_jax.training._task import Batch, Mean, Task, optional_member, played
from mnm_jax.training._update import losses


def evaluate(
    graphdef: nnx.GraphDef,
    params: Any,
    task: Task,
    split: str,
    batch_size: int,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, np.ndarray]:
    """Returns the metrics of every evaluation set of a split, each over all its counted steps.

    For a task with `carries` the model's carry is passed through all batches of a set.

    Args:
      graphdef: from `split_model`.
      params: leaves `[S, ...]`.
      task: the task.
      split: "valid" or "test".
      batch_size: number of examples per batch.
      devices: where to compute; None: all local devices.

    Returns:
      `[S]` float64 by name: "valid/accuracy", or "valid/support=32/accuracy" for the set "support=32". Besides the
      task's own metrics there are "loss" (nats) and, for a cell with a memory, "meta_loss".

    Raises:
      ValueError: if a set yields no batch, for an unknown split, or a batch size below 1.
    """
    check_choice("split", split, ("valid", "test"))
    check_sizes(batch_size=batch_size)
    return make_evaluate(graphdef, task, devices or jax.local_devices())(params, split, batch_size)


def make_evaluate(
    graphdef: nnx.GraphDef, task: Task, devices: Sequence[jax.Device], *, placed: bool = False
) -> Callable[[Any, str, int], dict[str, np.ndarray]]:
    """Returns `evaluate` as `(params, split, batch_size) -> metrics`, which compiles once per batch shape.

    `placed` states that the parameters of every call are on the devices already.
    """
    placement, carries = make_placement(devices), optional_member(task, "carries")

    def start_seed(params: Any, batch: Batch) -> Any:
        return nnx.merge(graphdef, params).start(batch.mask.shape[1])

    def measure_seed(state: tuple[Any, Any], batch: Batch) -> tuple[dict[str, Mean], Any]:
        params, carry = state
        model = nnx.merge(graphdef, params)
        batch = played(model, task, batch)
        task_loss, meta_loss, output = losses(model, task, batch, carry=carry)
        own = {"loss": task_loss} if output.meta_loss is None else {"loss": task_loss, "meta_loss": meta_loss}
        return own | dict(task.metrics(output.logits, batch)), output.carry if carries else None

    start = jax.jit(map_seeds(start_seed, devices))
    measure = jax.jit(map_seeds(measure_seed, devices), out_shardings=(placement.replicated, None))

    def run(params: Any, split: str, batch_size: int) -> dict[str, np.ndarray]:
        params = params if placed else to_devices(params, placement.replicated)
        result = {}
        for name, batches in task.evaluations(split, batch_size).items():
            sums: dict[str, Mean] = {}
            carry = None
            for batch in batches():
                batch = place_batch(batch, placement)
                if carries and carry is None:
                    carry = start(params, batch)
                means, carry = measure((params, carry), batch)
                for metric, mean in jax.device_get(means).items():
                    # Summed in float64 on the host, since float32 cannot count the steps of a large set exactly.
                    total, count = sums.get(metric, (0.0, 0.0))
                    sums[metric] = Mean(total + np.float64(mean.total), count + np.float64(mean.count))
            if not sums:
                raise ValueError(f"the evaluation {name!r} of the split {split!r} yields no batch.")
            for metric, (total, count) in sums.items():
                result["/".join(filter(None, (split, name, metric)))] = total / np.maximum(count, 1)
        return result

    return run
