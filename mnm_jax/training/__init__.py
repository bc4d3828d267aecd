"""Training: optimiser step, loop, evaluation, checkpoints, metrics; knows the `Task` protocol and no task by name."""

from mnm_jax.training.checkpoints import load_params
from mnm_jax.training.config import TrainConfig
from mnm_jax.training.evaluate import evaluate
from mnm_jax.training.loop import TrainResult, train
from mnm_jax.training.model import SequenceModel, SequenceOutput
from mnm_jax.training.optimizer import make_optimizer
from mnm_jax.training.parallel import PARALLEL
from mnm_jax.training.progress import ProgressBar
from mnm_jax.training.signals import Interrupted
from mnm_jax.training.state import TrainState, init_state, split_model
from mnm_jax.training.step import StepMetrics, TrainingFault
from mnm_jax.training.task import Batch, Loader, Mean, Task, played
from mnm_jax.training.weights import save_params
from mnm_jax.training.writers import MetricWriter, read_metrics

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
