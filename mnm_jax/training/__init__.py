"""Training: update, loop, evaluation, checkpoints and metrics, for any task that implements the protocol `Task`.

The loop, checkpoints and writers need the extra "train" (`pip install 'mnm_jax[train]'`).
"""

from mnm_jax.training._checkpoints import (
    Checkpoint,
    discard_fault,
    load_model,
    load_params,
    restore_checkpoint,
    save_checkpoint,
)
from mnm_jax.training._config import TrainConfig
from mnm_jax.training._evaluate import evaluate
from mnm_jax.training._explain import explain_fault
from mnm_jax.training._loop import TrainResult, train
from mnm_jax.training._model import SequenceModel, SequenceOutput
from mnm_jax.training._optimizer import make_optimizer
from mnm_jax.training._parallel import PARALLEL, Placement, make_parallel_update, make_placement
from mnm_jax.training._processes import common_errors, first_process_first, is_first_process, lock_workdir
from mnm_jax.training._progress import ProgressBar
from mnm_jax.training._signals import Interrupted
from mnm_jax.training._state import TrainState, init_state, split_model
from mnm_jax.training._task import Batch, Loader, Mean, Task, optional_member, played
from mnm_jax.training._update import TrainingFault, UpdateMetrics, make_update
from mnm_jax.training._weights import save_params
from mnm_jax.training._writers import MetricWriter, read_metrics

__all__ = [
    "PARALLEL",
    "Batch",
    "Checkpoint",
    "Interrupted",
    "Loader",
    "Mean",
    "MetricWriter",
    "Placement",
    "ProgressBar",
    "SequenceModel",
    "SequenceOutput",
    "Task",
    "TrainConfig",
    "TrainResult",
    "TrainState",
    "TrainingFault",
    "UpdateMetrics",
    "common_errors",
    "discard_fault",
    "evaluate",
    "explain_fault",
    "first_process_first",
    "init_state",
    "is_first_process",
    "load_model",
    "load_params",
    "lock_workdir",
    "make_optimizer",
    "make_parallel_update",
    "make_placement",
    "make_update",
    "optional_member",
    "played",
    "read_metrics",
    "restore_checkpoint",
    "save_checkpoint",
    "save_params",
    "split_model",
    "train",
]
