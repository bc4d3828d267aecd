"""Copy: put out what was put in."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tasks.algorithmic.bits import BitTask, Sequence, rows, signs, with_flags

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy(BitTask):
    """Vectors of bits, a flag, and then the same vectors again, with nothing shown.

    The time-line of three vectors:

        input   e9 b4 96 | .  .  .
        answer             e9 b4 96

    `T = 2 length + 1`; inputs are 8 bits and the flag: D = 9. The length counts vectors.

    Source: Graves et al., 2014 (Neural Turing Machines), section 4.1: 8 bits, lengths 1 to 20, tested up to 120.

    >>> task = Copy(length=3, shortest=3)
    >>> print(task.render(task.sample(jax.random.key(0), 1), 0))
    input   e9 b4 96 | .  .  .
    answer             e9 b4 96
    """

    length: int = 20
    lengths: tuple[int, ...] = (30, 50, 120)
    name: ClassVar[str] = "copy"

    def _sequence(self, key: Array, growth: Array) -> Sequence:
        return copies(self, key, growth, 1)


def copies(task: BitTask, key: Array, growth: Array, count: int) -> Sequence:
    """Vectors, a flag, and `count` times the same vectors to be put out."""
    length_key, vector_key = jax.random.split(key)
    length = task._draw_length(length_key, growth)
    vectors = signs(vector_key, (task.length, task.bits))
    t = jnp.arange((1 + count) * task.length + 1)
    answered = (t > length) & (t <= (1 + count) * length)
    inputs = with_flags(rows(vectors, t, t < length), t == length)
    return Sequence(inputs, rows(vectors, (t - length - 1) % length, answered), answered, t <= (1 + count) * length)
