"""Common parts of the tasks on bits: sampling, curriculum, evaluation sets, score and pictures.

Shape letters: `T` time steps, `B` examples, `D` input features, `C` bits of an answer.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax._checks import check_sizes
from mnm_jax.training import Batch, Mean
from tasks.arguments import to_sizes, unwrap_numbers
from tasks.sampling import draw_up_to, evaluation_set, growth_at
from tasks.scoring import bit_accuracy, bit_cross_entropy, whole_sequences
from tasks.timeline import time_line

Array = jax.Array


class BitSequence(NamedTuple):
    """One sequence, padding last.

    Attributes:
      inputs: `[T, D]`.
      answers: bits as +1 and -1, `[T, C]`; ignored where `loss_mask` is False.
      loss_mask: `[T]` bool, True where the answer counts.
      mask: `[T]` bool, False = padding.
    """

    inputs: Array
    answers: Array
    loss_mask: Array
    mask: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitTask(abc.ABC):
    """A task whose inputs and answers are vectors of random bits.

    Inputs: a bit is +1 or -1, and 0 if a step shows nothing; flags have channels of their own after the bits. An answer
    is C bits at one step.

    Meta-training: every sequence draws new bits and a length, uniform from `shortest` to `length`; its memory starts
    empty. One update minimises the sigmoid cross entropy (nats per bit) of the answers over a batch of such sequences.
    With a curriculum (Zaremba and Sutskever, 2014) the upper limit of the length grows linearly with the updates, from
    `shortest` to `length` over the first `curriculum` updates, so that short sequences are always among them.

    Metrics: accuracy, the fraction of right bits, and whole, the fraction of sequences with every bit right. Chance:
    0.5 of the bits, and no whole sequence. Oracle: the answers follow from the inputs; tests/tasks/test_algorithmic.py
    derives them. Evaluation sequences use keys that training does not use.

    A subclass defines `name` and `draw`; see `tasks.algorithmic.Copy`.

    Args:
      length: largest length trained on; each task defines what its length counts.
      shortest: smallest length.
      bits: bits per vector.
      curriculum: updates until the largest length is trained on; 0: from the first update on.
      lengths: lengths evaluated at the end (split "test"), besides the largest trained on.
      evaluation_batches: batches of each evaluation set.

    Raises:
      TypeError: an argument that is not a whole number, or lengths that are no tuple.
      ValueError: a number below 1 (below 0 for the curriculum), or shortest > length.
    """

    length: int
    shortest: int = 1
    bits: int = 8
    curriculum: int = 0
    lengths: tuple[int, ...] = ()
    evaluation_batches: int = 8

    name: ClassVar[str]
    flags: ClassVar[tuple[str, ...]] = ("|",)
    loader: ClassVar[None] = None

    def __post_init__(self) -> None:
        unwrap_numbers(self)
        object.__setattr__(self, "lengths", to_sizes("lengths", self.lengths))
        names = ("length", "shortest", "bits", "evaluation_batches")
        check_sizes(**{name: getattr(self, name) for name in names})
        check_sizes(least=0, curriculum=self.curriculum)
        if self.shortest > self.length:
            raise ValueError(f"shortest must be <= length = {self.length}, got {self.shortest}.")

    @property
    def input_features(self) -> int:
        """`D`."""
        return self.bits + len(self.flags)

    @property
    def output_features(self) -> int:
        """`C`."""
        return self.bits

    @abc.abstractmethod
    def draw(self, key: Array, growth: Array) -> BitSequence:
        """Returns a new sequence. `growth`: progress of the curriculum, from 0 to 1."""

    def draw_length(self, key: Array, growth: Array) -> Array:
        """Returns the length of a new sequence."""
        return draw_up_to(key, self.shortest, self.length, growth)

    def encoder(self, rngs: nnx.Rngs) -> Callable[[Array], Array]:
        """Returns the identity."""
        del rngs
        return lambda inputs: inputs

    def sample(self, key: Array, batch_size: int, step: Array | int | None = None) -> Batch:
        """Returns a new batch, as trained on after `step` updates; None: after the curriculum."""
        growth = growth_at(step, self.curriculum)
        drawn = jax.vmap(self.draw, (0, None))(jax.random.split(key, batch_size), growth)
        inputs, answers, loss_mask, mask = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), drawn)
        targets = jnp.where(loss_mask[..., None], (answers + 1) / 2, 0)
        return Batch(inputs=inputs, targets=targets, loss_mask=loss_mask.astype(inputs.dtype), mask=mask)

    def evaluations(self, split: str, batch_size: int) -> Mapping[str, Callable[[], Iterable[Batch]]]:
        """Returns a set of all trained lengths (""); for "test" also the largest alone, and each of `lengths`."""
        sets = {"": self} | (self.wider_sets() if split == "test" else {})
        return {name: evaluation_set(task, split, self.evaluation_batches, batch_size) for name, task in sets.items()}

    def wider_sets(self) -> dict[str, Self]:
        """Returns the settings that are evaluated at the end besides the trained one, by name."""
        return {f"length={n}": self.with_length(n) for n in dict.fromkeys((self.length, *self.lengths))}

    def with_length(self, length: int) -> Self:
        """Returns this task with sequences of one length."""
        return dataclasses.replace(self, length=length, shortest=length)

    def loss(self, logits: Array, batch: Batch) -> Mean:
        """Returns the sigmoid cross entropy in nats per bit; logits `[T, B, C]`."""
        return bit_cross_entropy(logits, batch)

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """Returns "accuracy" of the bits, "whole" sequences, and "chance", which is 0.5."""
        right = bit_accuracy(logits, batch)
        return {
            "accuracy": right,
            "whole": whole_sequences(logits, batch),
            "chance": Mean(total=right.count / 2, count=right.count),
        }

    def tokens(self, batch: Batch, index: int) -> list[str]:
        """Returns the input of each step: bits as a hexadecimal number, a flag by its sign, "." for nothing."""
        return [self.token(row) for row in np.asarray(batch.inputs[:, index])[np.asarray(batch.mask[:, index])]]

    def token(self, row: np.ndarray) -> str:
        """Returns the input of one step `[D]` as text."""
        flags = [flag for flag, value in zip(self.flags, row[self.bits :], strict=True) if value]
        return "".join((as_hex(row[: self.bits]) if row[: self.bits].any() else "", *flags)) or "."

    def answer(self, bits: np.ndarray) -> str:
        """Returns the answer of one step, C bits as 0 and 1, as text."""
        return as_hex(2 * bits - 1)

    def render(self, batch: Batch, index: int) -> str:
        """Returns example `index` as a time-line of inputs and answers."""
        tokens = self.tokens(batch, index)
        steps = zip(np.asarray(batch.targets[:, index]), np.asarray(batch.loss_mask[:, index]), strict=True)
        answers = [self.answer(bits) if counts else "" for bits, counts in steps]
        return time_line(tokens, answers[: len(tokens)])


def signs(key: Array, shape: tuple[int, ...]) -> Array:
    """Returns random bits as +1 and -1."""
    return jax.random.rademacher(key, shape, jnp.float32)


def rows(values: Array, index: Array, chosen: Array) -> Array:
    """Returns `[T, ...]`: values[index_t] where chosen_t, else 0. An index out of range must not be chosen."""
    taken = jnp.take(values, index, axis=0, mode="clip")
    return jnp.where(chosen.reshape(chosen.shape + (1,) * (taken.ndim - chosen.ndim)), taken, 0)


def with_flags(vectors: Array, *flags: Array) -> Array:
    """Returns `[T, D]`: vectors `[T, bits]` followed by a channel `[T]` per flag."""
    return jnp.concatenate([vectors, *(flag[:, None].astype(vectors.dtype) for flag in flags)], axis=1)


def as_hex(values: Sequence[float] | np.ndarray) -> str:
    """Returns bits (1 where positive), the first one highest, as a hexadecimal number.

    Examples:
      >>> as_hex([1, -1, 1, -1, -1, -1, 1, 1])
      'a3'
    """
    number = int("".join("1" if value > 0 else "0" for value in values), 2)
    return f"{number:0{-(-len(values) // 4)}x}"
