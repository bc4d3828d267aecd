"""Training: optimiser step, loop, evaluation, checkpoints, metrics; knows the `Task` protocol and no task by name."""

from mnm_jax.training._checkpoints import load_params
from mnm_jax.training._config import TrainConfig
from mnm_jax.training._evaluate import evaluate
from mnm_jax.training._loop import TrainResult, train
from mnm_jax.training._model import SequenceModel, SequenceOutput
from mnm_jax.training._optimizer import make_optimizer
from mnm_jax.training._parallel import PARALLEL
from mnm_jax.training._progress import ProgressBar
from mnm_jax.training._signals import Interrupted
from mnm_jax.training._state import TrainState, init_state, split_model
from mnm_jax.training._step import StepMetrics, TrainingFault
from mnm_jax.training._task import Batch, Loader, Mean, Task, played
from mnm_jax.training._weights import save_params
from mnm_jax.training._writers import MetricWriter, read_metrics

__all__ = [
    "PARALLEL",
    "Batch",
    "Interrupted",
    "Loader",
    "Mean",
    "MetricWriter",
    "ProgressBar",
    "SequenceModel",
    "SequenceOutput",
    "StepMetrics",
    "Task",
    "TrainConfig",
    "TrainResult",
    "TrainState",
    "TrainingFault",
    "evaluate",
    "init_state",
    "load_params",
    "make_optimizer",
    "played",
    "read_metrics",
    "save_params",
    "split_model",
    "train",
]
