"""Repeat copy: put out what was put in, as often as told."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tasks.algorithmic.bits import BitTask, Sequence, as_hex, check_at_least, draw_up_to, rows, signs, with_flags

Array = jax.Array

_MEAN, _DEVIATION = 5.5, 8.25**0.5  # of a number of repeats drawn from 1..10


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepeatCopy(BitTask):
    """Vectors of bits, a number of repeats, then the vectors so many times and an end mark.

    The time-line of two vectors, three repeats:

        input   b0 a2 |x3 .  .  .  .  .  .  .
        answer            b0 a2 b0 a2 b0 a2 end

    `T = length + length repeats + 2`; inputs are 8 bits, a flag, and the number of repeats, normalised as the paper's
    1 to 10 are to mean 0 and variance 1: D = 10. Answers are 8 bits and the end mark: C = 9. The length counts vectors.
    A curriculum makes the longest length grow in its first half and the most repeats in its second.

    Args:
      repeats: most repeats trained on. fewest: fewest.
      more_repeats: evaluated at the end, with the longest length trained on.
      Others: see `BitTask`.

    Raises:
      ValueError: see `BitTask`; or fewest > repeats.

    Source: Graves et al., 2014 (Neural Turing Machines), section 4.2: length and repeats from 1 to 10, tested with
    length 20 and with 20 repeats.

    >>> task = RepeatCopy(length=2, shortest=2, repeats=3, fewest=3)
    >>> print(task.render(task.sample(jax.random.key(0), 1), 0))
    input   b0 a2 |x3 .  .  .  .  .  .  .
    answer            b0 a2 b0 a2 b0 a2 end
    """

    length: int = 10
    repeats: int = 10
    fewest: int = 1
    lengths: tuple[int, ...] = (20,)
    more_repeats: tuple[int, ...] = (20,)
    name: ClassVar[str] = "repeat_copy"
    flags: ClassVar[tuple[str, ...]] = ("|", "x")

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "more_repeats", tuple(self.more_repeats))
        most = {"every one of more_repeats": min(self.more_repeats, default=1)}
        check_at_least(1, repeats=self.repeats, fewest=self.fewest, **most)
        if self.fewest > self.repeats:
            raise ValueError(f"fewest must be <= repeats = {self.repeats}, got {self.fewest}.")

    @property
    def output_features(self) -> int:
        return self.bits + 1

    def _sequence(self, key: Array, growth: Array) -> Sequence:
        length_key, repeats_key, vector_key = jax.random.split(key, 3)
        # First longer, then more often: the places in a sequence are learned sooner where it is put out once.
        length = self._draw_length(length_key, jnp.minimum(2 * growth, 1))
        repeats = draw_up_to(repeats_key, self.fewest, self.repeats, jnp.maximum(2 * growth - 1, 0))
        vectors = signs(vector_key, (self.length, self.bits))

        t = jnp.arange(self.length + self.length * self.repeats + 2)
        end = length + length * repeats + 1
        counted, is_end = (t > length) & (t <= end), t == end
        number = (repeats.astype(jnp.float32) - _MEAN) / _DEVIATION
        inputs = with_flags(rows(vectors, t, t < length), t == length, jnp.where(t == length, number, 0))
        copied = rows(vectors, (t - length - 1) % length, counted & ~is_end)
        answers = jnp.where(is_end[:, None], -1, copied)  # at the end no bit but the mark
        return Sequence(inputs, with_flags(answers, jnp.where(is_end, 1, -1)), counted, t <= end)

    def _wider(self) -> dict[str, BitTask]:
        full = self._with_length(self.length)
        more = {f"repeats={r}": dataclasses.replace(full, repeats=r, fewest=r) for r in self.more_repeats}
        return super()._wider() | more

    def _with_length(self, length: int) -> BitTask:
        return dataclasses.replace(self, length=length, shortest=length, fewest=self.repeats)

    def _token(self, row: np.ndarray) -> str:
        *bits, flag, number = row
        return f"|x{round(number * _DEVIATION + _MEAN)}" if flag else as_hex(np.array(bits)) if any(bits) else "."

    def _answer(self, bits: np.ndarray) -> str:
        return "end" if bits[-1] else super()._answer(bits[:-1])
