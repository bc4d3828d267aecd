"""The interface between tasks and the training program.

Shape letters: `T` time steps, `B` examples, `D` input features, `C` classes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx

from mnm_jax._checks import check_choice

Array = jax.Array


class Batch(NamedTuple):
    """One batch of sequences, time first.

    Attributes:
      inputs: `[T, B, ...]` inputs of the encoder per step (features, or word ids).
      targets: expected output per step, `[T, B]` an integer class or `[T, B, C]` bits as 0 and 1; ignored where
        `loss_mask` is 0.
      loss_mask: `[T, B]` float, 1 where the output of the step enters the loss, else 0.
      mask: `[T, B]` bool, False = padding.
      fork: `[T, B]` bool, True at a step whose carry is discarded (see `unroll`), such as a question in the middle of a
        story; None: no such step.
      reset_controller: `[T, B]` bool, True at a step before which the carry except the memory is reset (see
        `unroll`); None: no such step.
      fork_memory: `[T, B]` bool, True at a step whose memory is discarded (see `unroll`); None: no such step.
    """

    inputs: Any
    targets: Any
    loss_mask: Any
    mask: Any
    fork: Any = None
    reset_controller: Any = None
    fork_memory: Any = None

    @property
    def flags(self) -> dict[str, Any]:
        """The flags `[T, B]` that the batch has, as keyword arguments of the model and of `unroll`."""
        names = ("mask", "fork", "reset_controller", "fork_memory")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class Mean(NamedTuple):
    """A mean, stored as total and count so that the parts of a batch can be added.

    Attributes:
      total: sum over counted steps.
      count: number of counted steps.
    """

    total: Any
    count: Any

    @property
    def value(self) -> Array:
        """The mean; 0 if nothing was counted."""
        return self.total / jax.numpy.maximum(self.count, 1)


class Loader(Iterator[Batch], Protocol):
    """An endless stream of training batches (NumPy) whose position can be saved and restored."""

    def get_state(self) -> dict[str, Any]:
        """Returns the position, serialisable as JSON."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a position that `get_state` returned."""
        ...


class Task(Protocol):
    """The protocol of a task: data, loss, metrics and pictures. Implementations are frozen dataclasses.

    A task may also have these members, which `optional_member` reads:

    * `entity_shape`: the shape `(P, V)` of the codes at the end of each input's features, for `ChainCell`.
    * `pictured`: names of the evaluation sets for which a report draws a memory map.
    * `draw_episode(batch, index, trace, path, title)`: writes a picture of one example for a report; `trace` is None
      for a model without a memory.
    * `carries`: True for a task of endless streams: column b of each batch continues column b of the batch before it.
      Training then passes the model's carry from batch to batch, without a gradient, and stores it in checkpoints; an
      evaluation passes it through each set. All batches of training have `batch_size` columns.
    * `play(model, batch) -> Batch`: for a task whose batches depend on the model's actions. `sample` and `evaluations`
      then return the batches that `play` takes, and all other members take the batches that `play` returns.

    Attributes:
      name: short name, used in file names and tables.
      input_features: `D`, number of features per step after the encoder.
      output_features: `C`, number of classes or of bits.
      sample: `(key, batch_size, step=None) -> Batch`, pure and jittable, for a synthetic task; None for a task that
        reads files. `step`, an int or an array, is the number of updates made so far, for a task with a curriculum;
        None selects the end of the curriculum.
      loader: `(seed, batch_size[, part]) -> Loader`; None for a synthetic task. Exactly one of `sample` and `loader` is
        given. `part` is passed to each of several processes: (its index, the number of processes). The parts joined
        along `B` are the batches of a single process.
    """

    name: str
    input_features: int
    output_features: int
    sample: Callable[..., Batch] | None
    loader: Callable[..., Loader] | None

    def encoder(self, rngs: nnx.Rngs) -> Callable[[Array], Array]:
        """Returns a map from `Batch.inputs [T, B, ...]` to features `[T, B, D]`; an `nnx.Module` if it is learned."""
        ...

    def evaluations(self, split: str, batch_size: int) -> Mapping[str, Callable[[], Iterable[Batch]]]:
        """Returns the named evaluation sets of a split.

        Equal calls yield equal bytes. The name "" is the setting used in training; other names state the difference,
        such as "support=32".

        Args:
          split: "valid" during training, "test" at the end.
          batch_size: number of examples per batch.
        """
        ...

    def loss(self, logits: Array, batch: Batch) -> Mean:
        """Returns the cross entropy over counted steps, in nats (for bits: nats per bit); logits `[T, B, C]`."""
        ...

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """Returns named metrics over counted steps, none of which training needs; logits `[T, B, C]`.

        "accuracy", if there is one, is the fraction of right answers; reports compare runs by it.
        """
        ...

    def tokens(self, batch: Batch, index: int) -> list[str]:
        """Returns the input of each unmasked step of example `index` as a short label of the time axis."""
        ...

    def render(self, batch: Batch, index: int) -> str:
        """Returns example `index` of the batch as an ASCII time-line."""
        ...


_OPTIONAL = {"entity_shape": (0, 0), "pictured": (), "draw_episode": None, "carries": False, "play": None}


def optional_member(task: Any, name: str) -> Any:
    """Returns a member that a task may have, or its default for a task without it, such as False or None.

    Args:
      task: the task.
      name: "entity_shape", "pictured", "draw_episode", "carries" or "play", see `Task`.

    Raises:
      ValueError: if the protocol has no such optional member.
    """
    check_choice("name", name, _OPTIONAL)
    return getattr(task, name, _OPTIONAL[name])


def played(model: Any, task: Task, batch: Any) -> Batch:
    """Returns the batch, or `task.play(model, batch)` for a task that has `play`."""
    play = optional_member(task, "play")
    return batch if play is None else play(model, batch)
