"""What a task hands to the training program, and what it is asked for.

Shape letters: `T` time steps, `B` examples, `D` input features, `C` classes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx

Array = jax.Array


class Batch(NamedTuple):
    """One batch of sequences, time first.

    inputs: `[T, B, ...]` what the encoder takes at each step (features, or word ids).
    targets: expected at each step, `[T, B]` an integer class or `[T, B, C]` bits as 0 and 1; ignored where `loss_mask`
        is 0.
    loss_mask: `[T, B]` 1 where the answer of this step counts, else 0 (float).
    mask: `[T, B]` True where the step is real, False where it is padding (bool).
    fork: `[T, B]` True where the step is a question asked in the middle, which the model answers on a fork of its carry
        (see `unroll`; bool). None: nowhere.
    """

    inputs: Any
    targets: Any
    loss_mask: Any
    mask: Any
    fork: Any = None


class Mean(NamedTuple):
    """A mean kept as its two sums, so that parts of a batch add up exactly: value = total / count."""

    total: Array
    count: Array

    @property
    def value(self):
        return self.total / jax.numpy.maximum(self.count, 1)


class Loader(Iterator[Batch], Protocol):
    """An endless stream of training batches (numpy) whose position can be saved and restored."""

    def get_state(self) -> dict[str, Any]:
        """The position, as JSON can hold it."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a position of `get_state`."""
        ...


class Task(Protocol):
    """A task: data, loss mask, metric, pictures. Implementations are frozen dataclasses.

    name: short name, used in file names and tables.
    input_features: `D`, features of one step after the encoder.
    output_features: `C`, number of classes or of bits.
    sample: `(key, batch_size, step=None) -> Batch`, pure and jittable: synthetic tasks draw on the device. `step` are
        the updates made so far, for a task with a curriculum (None: as at its end). None for a task that reads files.
    loader: `(seed, batch_size[, part]) -> Loader`. None for a synthetic task. Exactly one of the two is given.
        part: given to each of several processes: (which of them it is, how many there are). Their parts side by side
        are the batches of one process.

    A task may also have `entity_shape`, the `(P, V)` codes with which the features of an input end (`ChainCell` needs
    them), `pictured`, names of the evaluation sets of which a report draws a memory map, and `play`, `(model, batch) ->
    Batch`, for batches that the model has a part in: `sample` and `evaluations` then give what `play` starts from, and
    all else is asked about the batches that it returns.
    """

    name: str
    input_features: int
    output_features: int
    sample: Callable[..., Batch] | None
    loader: Callable[..., Loader] | None

    def encoder(self, rngs: nnx.Rngs) -> Callable[[Array], Array]:
        """A map from `Batch.inputs [T, B, ...]` to features `[T, B, D]`; an `nnx.Module` if it learns."""
        ...

    def evaluations(self, split: str, batch_size: int) -> Mapping[str, Callable[[], Iterable[Batch]]]:
        """Named evaluation sets of `split` ("valid" while training, "test" at the end).

        The same call yields the same bytes. The name "" is the trained setting; others name what differs, as
        in "support=32".
        """
        ...

    def loss(self, logits: Array, batch: Batch) -> Mean:
        """Cross entropy in nats over counted steps (of bits: nats a bit); logits `[T, B, C]`."""
        ...

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """Named metrics over counted steps; logits `[T, B, C]`."""
        ...

    def tokens(self, batch: Batch, index: int) -> list[str]:
        """What goes in at each real step of example `index`, as short text: a label of the time axis a step."""
        ...

    def render(self, batch: Batch, index: int) -> str:
        """Example `index` of the batch as an ASCII time-line."""
        ...


def played(model: Any, task: Task, batch: Batch) -> Batch:
    """The batch as it is, or, of a task that is played, what the model makes of it."""
    play = getattr(task, "play", None)
    return batch if play is None else play(model, batch)
