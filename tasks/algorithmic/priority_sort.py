"""Priority sort: answer with the vectors of the highest priorities, highest first."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tasks.algorithmic.bits import BitSequence, BitTask, as_hex, rows, signs, with_flags

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrioritySort(BitTask):
    """Shows vectors of bits with priorities, and a flag; the answers are the highest four fifths, highest first.

    Priorities are uniform in [-1, 1). The length counts vectors. `T = length + 1 + answers` with
    `answers = max(1, 4 length // 5)`; inputs are 8 bits, the flag and the priority, D = 10; answers are 8 bits, C = 8.
    Meta-training, metrics, chance level and arguments: see `BitTask`. Oracle: sort.

    Examples:
      Three vectors, of which two are the answers:

      >>> task = PrioritySort(length=3, shortest=3)
      >>> batch = task.sample(jax.random.key(0), 2)
      >>> print(task.render(batch, 0))
      input   e9-0.54 b4+0.48 96-0.98 | .  .
      answer                            b4 e9

    References:
      Graves et al., Neural Turing Machines, 2014, section 4.5: 20 vectors, the answers are the first 16. Here training
      also has shorter sequences (`shortest=20` gives the paper's setting); the test set "length=20" is the paper's.
    """

    length: int = 20
    lengths: tuple[int, ...] = (30, 40)
    name: ClassVar[str] = "priority_sort"
    flags: ClassVar[tuple[str, ...]] = ("|", "priority")

    def draw(self, key: Array, growth: Array) -> BitSequence:
        length_key, vector_key, priority_key = jax.random.split(key, 3)
        length = self.draw_length(length_key, growth)
        vectors = signs(vector_key, (self.length, self.bits))
        priorities = jax.random.uniform(priority_key, (self.length,), jnp.float32, -1, 1)
        order = jnp.argsort(jnp.where(jnp.arange(self.length) < length, priorities, -jnp.inf), descending=True)

        t = jnp.arange(self.length + 1 + max(1, 4 * self.length // 5))
        mask = t <= length + jnp.maximum(1, 4 * length // 5)
        answered = (t > length) & mask
        return BitSequence(
            inputs=with_flags(rows(vectors, t, t < length), t == length, rows(priorities, t, t < length)),
            answers=rows(vectors[order], t - length - 1, answered),
            loss_mask=answered,
            mask=mask,
        )

    def token(self, shown: np.ndarray) -> str:
        *bits, flag, priority = shown
        return f"{as_hex(bits)}{priority:+.2f}" if any(bits) else "|" if flag else "."
