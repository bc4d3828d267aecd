"""Copy: repeat a sequence of vectors."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tasks.algorithmic.bits import BitSequence, BitTask, rows, signs, with_flags

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy(BitTask):
    """Shows vectors of bits and a flag; the answers, at the following steps without input, are the same vectors.

    The length counts vectors. `T = 2 length + 1`; inputs are 8 bits and the flag, D = 9; answers are 8 bits, C = 8.
    Meta-training, metrics, chance level and arguments: see `BitTask`. Oracle: a queue.

    Examples:
      Three vectors. The answer row shows the targets of the steps that count (`loss_mask` 1):

      >>> task = Copy(length=3, shortest=3)
      >>> batch = task.sample(jax.random.key(0), 2)
      >>> batch.inputs.shape, batch.targets.shape
      ((7, 2, 9), (7, 2, 8))
      >>> print(task.render(batch, 0))
      input   e9 b4 96 | .  .  .
      answer             e9 b4 96

    References:
      Graves et al., Neural Turing Machines, 2014, section 4.1: 8 bits, lengths 1 to 20, tested up to 120.
    """

    length: int = 20
    lengths: tuple[int, ...] = (30, 50, 120)
    name: ClassVar[str] = "copy"

    def draw(self, key: Array, growth: Array) -> BitSequence:
        return draw_copies(self, key, growth, 1)


def draw_copies(task: BitTask, key: Array, growth: Array, count: int) -> BitSequence:
    """Returns a sequence of vectors and a flag whose answers are the same vectors `count` times."""
    length_key, vector_key = jax.random.split(key)
    length = task.draw_length(length_key, growth)
    vectors = signs(vector_key, (task.length, task.bits))
    t = jnp.arange((1 + count) * task.length + 1)
    mask = t <= (1 + count) * length
    answered = (t > length) & mask
    return BitSequence(
        inputs=with_flags(rows(vectors, t, t < length), t == length),
        answers=rows(vectors, (t - length - 1) % length, answered),
        loss_mask=answered,
        mask=mask,
    )
