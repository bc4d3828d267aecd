"""Repeat copy: repeat a sequence of vectors a given number of times."""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax._checks import check_sizes
from tasks.algorithmic.bits import BitSequence, BitTask, as_hex, rows, signs, with_flags
from tasks.arguments import to_sizes
from tasks.sampling import draw_up_to

Array = jax.Array

_MEAN, _DEVIATION = 5.5, 8.25**0.5  # moments of the paper's number of repeats, uniform from 1 to 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepeatCopy(BitTask):
    """Shows vectors of bits and a number of repeats; the answers are the vectors that many times, then an end mark.

    Repeats are uniform from `fewest` to `repeats`. The length counts vectors. `T = length + length repeats + 2`; inputs
    are 8 bits, a flag, and with it the number of repeats, normalised so that the paper's 1 to 10 have mean 0 and
    variance 1: D = 10. Answers are 8 bits and the end mark: C = 9. A curriculum raises the largest length in its first
    half and the most repeats in its second. Meta-training, metrics and chance level: see `BitTask`. Oracle: a list and
    a counter.

    Args:
      repeats: most repeats trained on.
      fewest: fewest repeats trained on.
      more_repeats: numbers of repeats evaluated at the end, at the largest length trained on. Other arguments: see
        `BitTask`.

    Raises:
      TypeError, ValueError: see `BitTask`; or a number of repeats below 1, or fewest > repeats.

    Examples:
      Two vectors, three repeats:

      >>> task = RepeatCopy(length=2, shortest=2, repeats=3, fewest=3)
      >>> batch = task.sample(jax.random.key(0), 2)
      >>> print(task.render(batch, 0))
      input   b0 a2 |x3 .  .  .  .  .  .  .
      answer            b0 a2 b0 a2 b0 a2 end

    References:
      Graves et al., Neural Turing Machines, 2014, section 4.2: length and repeats from 1 to 10, tested with length 20
      and with 20 repeats.
    """

    length: int = 10
    repeats: int = 10
    fewest: int = 1
    lengths: tuple[int, ...] = (20,)
    more_repeats: tuple[int, ...] = (20,)
    name: ClassVar[str] = "repeat_copy"
    flags: ClassVar[tuple[str, ...]] = ("|", "x")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "more_repeats", to_sizes("more_repeats", self.more_repeats))
        check_sizes(repeats=self.repeats, fewest=self.fewest)
        if self.fewest > self.repeats:
            raise ValueError(f"fewest must be <= repeats = {self.repeats}, got {self.fewest}.")

    @property
    def output_features(self) -> int:
        return self.bits + 1

    def draw(self, key: Array, growth: Array) -> BitSequence:
        length_key, repeats_key, vector_key = jax.random.split(key, 3)
        # Lengths grow before repeats: a position in the list is learned sooner from sequences that repeat it once.
        length = self.draw_length(length_key, jnp.minimum(2 * growth, 1))
        repeats = draw_up_to(repeats_key, self.fewest, self.repeats, jnp.maximum(2 * growth - 1, 0))
        vectors = signs(vector_key, (self.length, self.bits))

        t = jnp.arange(self.length + self.length * self.repeats + 2)
        end = length + length * repeats + 1
        is_flag, is_end, answered = t == length, t == end, (t > length) & (t <= end)
        number = (repeats.astype(jnp.float32) - _MEAN) / _DEVIATION
        copied = rows(vectors, (t - length - 1) % length, answered & ~is_end)
        answers = jnp.where(is_end[:, None], -1, copied)  # the end mark has no bits
        return BitSequence(
            inputs=with_flags(rows(vectors, t, t < length), is_flag, jnp.where(is_flag, number, 0)),
            answers=with_flags(answers, jnp.where(is_end, 1, -1)),
            loss_mask=answered,
            mask=t <= end,
        )

    def wider_sets(self) -> dict[str, Self]:
        full = self.with_length(self.length)
        more = {f"repeats={r}": dataclasses.replace(full, repeats=r, fewest=r) for r in self.more_repeats}
        return super().wider_sets() | more

    def with_length(self, length: int) -> Self:
        return dataclasses.replace(self, length=length, shortest=length, fewest=self.repeats)

    def token(self, shown: np.ndarray) -> str:
        *bits, flag, number = shown
        return f"|x{round(number * _DEVIATION + _MEAN)}" if flag else as_hex(bits) if any(bits) else "."

    def answer(self, target: np.ndarray) -> str:
        return "end" if target[-1] else super().answer(target[:-1])
