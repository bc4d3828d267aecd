"""The settings of a training run."""

import dataclasses

import jax
import optax

from mnm_jax._checks import check_not_negative, check_sizes
from mnm_jax.training._optimizer import make_optimizer, make_schedule
from mnm_jax.training._state import check_seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a run, checked at construction.

    Attributes:
      steps: number of updates. A finished run continues if it is increased; the whole schedule is then that of the new
        number, see `mnm_jax.training.train`.
      batch_size: `B`, over all devices; a multiple of their number.
      accumulate: number of parts into which a device's share of the batch is divided, for a batch that exceeds the
        device's memory. Gradients are summed over them, so that the result is that of the whole batch. A batch that a
        loader reads is padded to a multiple; a sampled batch, and one with a carry, must be one.
      learning_rate: the rate after the warm-up.
      optimizer: "adam", "adamw", "muon", "nadam" or "sgd"; see `mnm_jax.training.make_optimizer`.
      schedule: "constant", "cosine" or "trapezoid"; see `mnm_jax.training.make_optimizer`.
      warmup_steps: number of updates over which the rate rises linearly from 0.
      clip_norm: largest global norm of the gradient; None: no limit.
      weight_decay: decoupled weight decay; "adamw" and "muon" only.
      epsilon: see `mnm_jax.training.make_optimizer`; ignored by "sgd".
      meta_weight: weight of the meta loss in the objective.
      seed: the first seed.
      seeds: number of seeds trained in one program: `seed, seed + 1, ...`. They differ in their initial parameters, and
        in their batches if the task draws them (`Task.sample`). If the task has a `loader`, all of them get the batches
        of the first seed; start one run per seed if the order of the batches should differ, too.
      log_every: number of updates between two lines of training metrics; each line holds the metrics of one update.
      eval_every: number of updates between two evaluations on "valid"; the last update is always followed by one.
      checkpoint_seconds: seconds between two checkpoints; the last update is always followed by one.

    Raises:
      TypeError: if a setting is of the wrong kind; every message is one line.
      ValueError: if a setting is out of range.
    """

    steps: int
    batch_size: int
    learning_rate: float
    optimizer: str = "adam"
    schedule: str = "constant"
    warmup_steps: int = 0
    clip_norm: float | None = None
    weight_decay: float = 0.0
    epsilon: float = 1e-8
    accumulate: int = 1
    meta_weight: float = 1.0
    seed: int = 0
    seeds: int = 1
    log_every: int = 100
    eval_every: int = 1000
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        sizes = ("steps", "batch_size", "accumulate", "seeds", "log_every", "eval_every")
        check_sizes(**{name: getattr(self, name) for name in sizes})
        check_seeds(self.seed, self.seeds)
        check_not_negative(meta_weight=self.meta_weight, checkpoint_seconds=self.checkpoint_seconds)
        self.make_optimizer()

    def learning_rate_at(self, step: int) -> float:
        """Returns the learning rate of the update that follows `step` updates."""
        rate = make_schedule(self.learning_rate, self.steps, self.schedule, self.warmup_steps)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer count with floats
            return float(rate(step))

    def make_optimizer(self) -> optax.GradientTransformation:
        """Returns the optimiser of these settings; see `mnm_jax.training.make_optimizer`."""
        return make_optimizer(
            name=self.optimizer,
            learning_rate=self.learning_rate,
            steps=self.steps,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            clip_norm=self.clip_norm,
            weight_decay=self.weight_decay,
            epsilon=self.epsilon,
        )
