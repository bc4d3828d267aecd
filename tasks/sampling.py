"""Tasks that draw their sequences: curriculum, evaluation sets and pictures.

Shape letters: `T` time steps, `B` examples.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax._checks import check_choice, check_flags, check_sizes
from mnm_jax.training import Batch
from tasks.arguments import unwrap_numbers
from tasks.timeline import time_line

Array = jax.Array

_SEEDS = {"valid": 1, "test": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnTask(abc.ABC):
    """A task that draws every sequence, the base of `BitTask` and `TokenTask`.

    A subclass defines `name`, `draw`, whose result `to_batch` accepts, and texts for pictures: `token` and `answer`.

    Args:
      curriculum: updates until the sequences have their largest size; 0: they always have it.
      wider: whether to evaluate (split "test") the sets of `wider_sets`, too.
      evaluation_batches: batches of each evaluation set.

    Raises:
      TypeError, ValueError: an argument of another type or out of range.
    """

    curriculum: int = 0
    wider: bool = True
    evaluation_batches: int = 8

    name: ClassVar[str]
    loader: ClassVar[None] = None

    def __post_init__(self) -> None:
        unwrap_numbers(self)
        check_sizes(evaluation_batches=self.evaluation_batches)
        check_sizes(least=0, curriculum=self.curriculum)
        check_flags(wider=self.wider)

    @abc.abstractmethod
    def draw(self, key: Array, growth: Array) -> Any:
        """Returns a new sequence, leaves `[T, ...]`. `growth`: progress of the curriculum, from 0 to 1."""

    @abc.abstractmethod
    def to_batch(self, drawn: Any) -> Batch:
        """Returns sequences as a batch; leaves `[T, B, ...]`, otherwise as `draw` returns them."""

    @abc.abstractmethod
    def token(self, shown: Any) -> str:
        """Returns the input of one step as text."""

    @abc.abstractmethod
    def answer(self, target: Any) -> str:
        """Returns the target of one step as text."""

    def wider_sets(self) -> dict[str, Self]:
        """Returns the settings that are evaluated at the end besides the trained one, by name."""
        return {}

    def sample(self, key: Array, batch_size: int, step: Array | int | None = None) -> Batch:
        """Returns a new batch, as trained on after `step` updates; None: after the curriculum."""
        growth = growth_at(step, self.curriculum)
        drawn = jax.vmap(self.draw, (0, None))(jax.random.split(key, batch_size), growth)
        return self.to_batch(jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), drawn))

    def evaluations(self, split: str, batch_size: int) -> Mapping[str, Callable[[], Iterable[Batch]]]:
        """Returns the evaluation sets by name: "" is the trained setting; "test" adds `wider_sets` if `wider`."""
        sets = {"": self} | (self.wider_sets() if split == "test" and self.wider else {})
        return {name: evaluation_set(task, split, self.evaluation_batches, batch_size) for name, task in sets.items()}

    def tokens(self, batch: Batch, index: int) -> list[str]:
        """Returns the input of each step of example `index` as text."""
        return [self.token(shown) for shown in np.asarray(batch.inputs[:, index])[np.asarray(batch.mask[:, index])]]

    def render(self, batch: Batch, index: int) -> str:
        """Returns example `index` as a time-line of inputs and answers."""
        tokens = self.tokens(batch, index)
        steps = zip(np.asarray(batch.targets[:, index]), np.asarray(batch.loss_mask[:, index]), strict=True)
        answers = [self.answer(target) if counts else "" for target, counts in steps]
        return time_line(tokens, answers[: len(tokens)])


def growth_at(step: Array | int | None, curriculum: int) -> Array:
    """Returns the progress of a curriculum over `curriculum` updates, up to 1, after `step` updates; None: after it."""
    if not curriculum or step is None:
        return jnp.float32(1)
    return jnp.minimum(jnp.float32(1), jnp.asarray(step + 1, jnp.float32) / curriculum)


def draw_up_to(key: Array, low: int, high: int, growth: Array) -> Array:
    """Returns an integer, uniform from `low` to `low + growth (high - low)`, rounded up."""
    most = low + jnp.ceil((high - low) * growth).astype(jnp.int32)
    return jax.random.randint(key, (), low, most + 1)


def evaluation_set(task: Any, split: str, count: int, batch_size: int) -> Callable[[], Iterator[Batch]]:
    """Returns a source of `count` batches of a task, the same ones on every call.

    The keys are derived from seeds reserved for evaluation, so that no run with a small seed trains on these sequences.

    Args:
      task: a task with `sample`; hashable.
      split: "valid" or "test"; the two share no sequence.
      count: number of batches.
      batch_size: examples of each batch, `B`.

    Raises:
      TypeError, ValueError: another split, or a batch size that is not a whole number above 0.
    """
    check_choice("split", split, _SEEDS)
    check_sizes(batch_size=batch_size)
    return partial(_draw_all, task, _SEEDS[split], count, batch_size)


def _draw_all(task: Any, seed: int, count: int, batch_size: int) -> Iterator[Batch]:
    key = jax.random.fold_in(jax.random.key(2**31 - 1), seed)
    for index in range(count):
        yield _draw(task, jax.random.fold_in(key, index), batch_size)


@partial(jax.jit, static_argnums=(0, 2))
def _draw(task: Any, key: jax.Array, batch_size: int) -> Batch:
    return task.sample(key, batch_size)
