"""Priority sort: put out the vectors with the highest priorities, highest first."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tasks.algorithmic.bits import BitTask, Sequence, as_hex, rows, signs, with_flags

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrioritySort(BitTask):
    """Vectors of bits, each with a priority, a flag, and then four in five of them by falling priority.

    The time-line of three vectors, of which two come out:

        input   e9-0.54 b4+0.48 96-0.98 | .  .
        answer                            b4 e9

    `T = length + 1 + answers`, answers = max(1, 4 length // 5); inputs are 8 bits, the flag and the priority, uniform
    in [-1, 1): D = 10. The length counts vectors put in.

    Source: Graves et al., 2014 (Neural Turing Machines), section 4.5: 20 vectors in, the 16 first out. Shorter ones are
    trained on too (`shortest=20` for the paper's setting); the test set "length=20" is the paper's.

    >>> task = PrioritySort(length=3, shortest=3)
    >>> print(task.render(task.sample(jax.random.key(0), 1), 0))
    input   e9-0.54 b4+0.48 96-0.98 | .  .
    answer                            b4 e9
    """

    length: int = 20
    lengths: tuple[int, ...] = (30, 40)
    name: ClassVar[str] = "priority_sort"
    flags: ClassVar[tuple[str, ...]] = ("|", "priority")

    def _sequence(self, key: Array, growth: Array) -> Sequence:
        length_key, vector_key, priority_key = jax.random.split(key, 3)
        length = self._draw_length(length_key, growth)
        vectors = signs(vector_key, (self.length, self.bits))
        priorities = jax.random.uniform(priority_key, (self.length,), jnp.float32, -1, 1)
        order = jnp.argsort(jnp.where(jnp.arange(self.length) < length, priorities, -jnp.inf), descending=True)

        t = jnp.arange(self.length + 1 + answers(self.length))
        answered = (t > length) & (t <= length + answers(length))
        inputs = with_flags(rows(vectors, t, t < length), t == length, rows(priorities, t, t < length))
        sorted_vectors = rows(vectors[order], t - length - 1, answered)
        return Sequence(inputs, sorted_vectors, answered, t <= length + answers(length))

    def _token(self, row: np.ndarray) -> str:
        *bits, flag, priority = row
        return f"{as_hex(np.array(bits))}{priority:+.2f}" if any(bits) else "|" if flag else "."


def answers(length):
    """How many of `length` vectors come out."""
    return jnp.maximum(1, 4 * length // 5) if isinstance(length, jax.Array) else max(1, 4 * length // 5)
