"""Common parts of the tasks on bits: lengths, encoding, score and texts.

Shape letters: `T` time steps, `B` examples, `D` input features, `C` bits of an answer.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax._checks import check_sizes
from mnm_jax.training import Batch, Mean
from tasks.arguments import to_sizes
from tasks.sampling import DrawnTask, draw_up_to
from tasks.scoring import bit_accuracy, bit_cross_entropy, whole_sequences

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
class BitTask(DrawnTask):
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
      lengths: lengths evaluated at the end (split "test"), besides the largest trained on.
        Other arguments: see `DrawnTask`.

    Raises:
      TypeError: an argument that is not a whole number, or lengths that are no tuple.
      ValueError: a number below 1 (below 0 for the curriculum), or shortest > length.
    """

    length: int
    shortest: int = 1
    bits: int = 8
    lengths: tuple[int, ...] = ()

    flags: ClassVar[tuple[str, ...]] = ("|",)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "lengths", to_sizes("lengths", self.lengths))
        check_sizes(length=self.length, shortest=self.shortest, bits=self.bits)
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

    def draw_length(self, key: Array, growth: Array) -> Array:
        """Returns the length of a new sequence."""
        return draw_up_to(key, self.shortest, self.length, growth)

    def encoder(self, rngs: nnx.Rngs) -> Callable[[Array], Array]:
        """Returns the identity."""
        del rngs
        return lambda inputs: inputs

    def to_batch(self, drawn: BitSequence) -> Batch:
        """Returns sequences `[T, B, ...]` as a batch."""
        inputs, answers, loss_mask, mask = drawn
        targets = jnp.where(loss_mask[..., None], (answers + 1) / 2, 0)
        return Batch(inputs=inputs, targets=targets, loss_mask=loss_mask.astype(inputs.dtype), mask=mask)

    def wider_sets(self) -> dict[str, Self]:
        """Returns the largest trained length alone, and each of `lengths`."""
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

    def token(self, shown: np.ndarray) -> str:
        """Returns the input of one step `[D]`: bits as a hexadecimal number, a flag by its sign, "." for nothing."""
        flags = [flag for flag, value in zip(self.flags, shown[self.bits :], strict=True) if value]
        return "".join((as_hex(shown[: self.bits]) if shown[: self.bits].any() else "", *flags)) or "."

    def answer(self, target: np.ndarray) -> str:
        """Returns the answer of one step, C bits as 0 and 1, as text."""
        return as_hex(2 * target - 1)


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
