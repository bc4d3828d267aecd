"""What the tasks on bits share: sampling, curriculum, evaluation sets, score and pictures.

Shape letters: `T` time steps, `B` examples, `D` input features, `C` bits put out.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax.training._task import Batch, Mean
from tasks.sampling import draw_batches
from tasks.scoring import bit_accuracy, bit_cross_entropy, whole_sequences

Array = jax.Array


class Sequence(NamedTuple):
    """One sequence, padding last. inputs `[T, D]`; answers `[T, C]` of +-1; counted, real: `[T]` bool."""

    inputs: Array
    answers: Array
    counted: Array
    real: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitTask(abc.ABC):
    """A task whose inputs and answers are vectors of random bits.

    A bit goes in as +1 or -1, and as 0 where nothing is shown; flags have channels of their own behind the bits.
    An answer is C bits at once: logits `[T, B, C]`, sigmoid cross entropy in nats a bit, accuracy the share of right
    bits (chance 0.5), and `whole`, the share of sequences with every bit right.

    Each sequence draws its length, uniform from `shortest` to `length`. With a curriculum the longest of them grows
    with the updates, linearly from `shortest` to `length` over the first `curriculum` updates.

    Args:
      length: longest sequence trained on; what it counts is the task's affair.
      shortest: shortest sequence.
      bits: in a vector.
      curriculum: updates until the longest sequences are trained on; 0: from the first update on.
      lengths: evaluated at the end (split "test"), beside the longest trained on.
      evaluation_batches: batches in each evaluation set.

    Raises:
      ValueError: for a number below 1 (a curriculum below 0), or shortest > length.

    Source: the curriculum is the one of growing difficulty of Zaremba and Sutskever, 2014, with shorter sequences
    always mixed in.
    """

    length: int
    shortest: int = 1
    bits: int = 8
    curriculum: int = 0
    lengths: tuple[int, ...] = ()
    evaluation_batches: int = 8

    name: ClassVar[str]
    flags: ClassVar[tuple[str, ...]] = ("|",)
    loader = None

    def __post_init__(self):
        object.__setattr__(self, "lengths", tuple(self.lengths))  # a list, where it comes from a file
        check_at_least(
            1,
            length=self.length,
            shortest=self.shortest,
            bits=self.bits,
            evaluation_batches=self.evaluation_batches,
            **{"every one of lengths": min(self.lengths, default=1)},
        )
        check_at_least(0, curriculum=self.curriculum)
        if self.shortest > self.length:
            raise ValueError(f"shortest must be <= length = {self.length}, got {self.shortest}.")

    @property
    def input_features(self) -> int:
        return self.bits + len(self.flags)

    @property
    def output_features(self) -> int:
        return self.bits

    def encoder(self, rngs: nnx.Rngs) -> Callable[[Array], Array]:
        """The inputs as they are."""
        del rngs
        return lambda inputs: inputs

    def sample(self, key: Array, batch_size: int, step: Array | None = None) -> Batch:
        """A fresh batch, as trained on after `step` updates (None: when the curriculum is over); pure."""
        growth = jnp.float32(1)
        if self.curriculum and step is not None:
            growth = jnp.minimum(jnp.float32(1), (step + 1).astype(jnp.float32) / self.curriculum)
        drawn = jax.vmap(self._sequence, (0, None))(jax.random.split(key, batch_size), growth)
        inputs, answers, counted, real = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), drawn)
        targets = jnp.where(counted[..., None], (answers + 1) / 2, 0)
        return Batch(inputs, targets, counted.astype(inputs.dtype), real)

    @abc.abstractmethod
    def _sequence(self, key: Array, growth: Array) -> Sequence:
        """One sequence; growth: how far the curriculum is, from 0 to 1."""

    def _draw_length(self, key: Array, growth: Array) -> Array:
        return draw_up_to(key, self.shortest, self.length, growth)

    def evaluations(self, split: str, batch_size: int) -> Mapping[str, Callable[[], Iterable[Batch]]]:
        """The trained lengths mixed; for "test" also the longest of them alone, and each of `lengths`."""
        if split == "valid":
            return {"": partial(self._batches, 1, batch_size)}
        return {name: partial(task._batches, 2, batch_size) for name, task in ({"": self} | self._wider()).items()}

    def _wider(self) -> dict[str, "BitTask"]:
        return {f"length={n}": self._with_length(n) for n in dict.fromkeys((self.length, *self.lengths))}

    def _with_length(self, length: int) -> "BitTask":
        return dataclasses.replace(self, length=length, shortest=length)

    def _batches(self, seed: int, batch_size: int) -> Iterable[Batch]:
        return draw_batches(self, seed, self.evaluation_batches, batch_size)

    def loss(self, logits: Array, batch: Batch) -> Mean:
        return bit_cross_entropy(logits, batch)

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """accuracy: share of right bits; whole: share of sequences without a wrong bit; chance: 0.5, of a bit."""
        right = bit_accuracy(logits, batch)
        return {
            "accuracy": right,
            "whole": whole_sequences(logits, batch),
            "chance": Mean(right.count / 2, right.count),
        }

    def tokens(self, batch: Batch, index: int) -> list[str]:
        """What goes in: bits as a hexadecimal number, a flag by its sign, "." where nothing is shown."""
        real = np.asarray(batch.mask[:, index])
        return [self._token(row) for row in np.asarray(batch.inputs[:, index])[real]]

    def _token(self, row: np.ndarray) -> str:
        flags = [flag for flag, value in zip(self.flags, row[self.bits :], strict=True) if value]
        return "".join((as_hex(row[: self.bits]) if row[: self.bits].any() else "", *flags)) or "."

    def render(self, batch: Batch, index: int) -> str:
        """Example `index` as a time-line: what goes in, and what is to come out."""
        tokens = self.tokens(batch, index)
        steps = zip(np.asarray(batch.targets[:, index]), np.asarray(batch.loss_mask[:, index]), strict=True)
        answers = [self._answer(bits) if counted else "" for bits, counted in steps]
        columns = [(token, answer) for token, answer in zip(tokens, answers[: len(tokens)], strict=True)]
        rows = [" ".join(column[row].ljust(max(map(len, column))) for column in columns) for row in (0, 1)]
        return f"input   {rows[0].rstrip()}\nanswer  {rows[1].rstrip()}"

    def _answer(self, bits: np.ndarray) -> str:
        return as_hex(2 * bits - 1)


def check_at_least(least: int, **numbers: int) -> None:
    """Raises ValueError unless every named number is at least `least`."""
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} must be >= {least}, got {number}.")


def signs(key: Array, shape: tuple[int, ...]) -> Array:
    """Random bits as +1 and -1."""
    return jax.random.rademacher(key, shape, jnp.float32)


def rows(values: Array, index: Array, chosen: Array) -> Array:
    """`[T, ...]`: values[index_t] where chosen_t, else 0; an index out of range is never chosen."""
    taken = jnp.take(values, index, axis=0, mode="clip")
    return jnp.where(chosen.reshape(chosen.shape + (1,) * (taken.ndim - chosen.ndim)), taken, 0)


def with_flags(vectors: Array, *flags: Array) -> Array:
    """`[T, D]`: vectors `[T, bits]` with channels `[T]` behind them."""
    return jnp.concatenate([vectors, *(flag[:, None].astype(vectors.dtype) for flag in flags)], axis=1)


def draw_up_to(key: Array, low: int, high: int, growth: Array) -> Array:
    """A whole number, uniform from `low` to `low + growth (high - low)`, rounded up."""
    most = low + jnp.ceil((high - low) * growth).astype(jnp.int32)
    return jax.random.randint(key, (), low, most + 1)


def as_hex(values: np.ndarray) -> str:
    """Bits (set where positive), the first one highest, as a hexadecimal number.

    >>> as_hex(np.array([1, -1, 1, -1, -1, -1, 1, 1]))
    'a3'
    """
    number = int("".join("1" if value > 0 else "0" for value in values), 2)
    return f"{number:0{-(-len(values) // 4)}x}"
