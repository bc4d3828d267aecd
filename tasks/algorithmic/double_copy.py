"""Double copy: put out twice what was put in."""

import dataclasses
from typing import ClassVar

import jax

from tasks.algorithmic.bits import BitTask, Sequence
from tasks.algorithmic.copy import copies

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoubleCopy(BitTask):
    """Vectors of bits, a flag, and then the same vectors twice, with nothing shown and no mark in between.

    The time-line of two vectors:

        input   e9 b4 | .  .  .  .
        answer          e9 b4 e9 b4

    `T = 3 length + 1`; inputs are 8 bits and the flag: D = 9. The length counts vectors.

    Source: Le et al., ICLR 2019 (arXiv 1901.01347), section 4.2 ("double"); bits and lengths as in `Copy`.

    >>> task = DoubleCopy(length=2, shortest=2)
    >>> print(task.render(task.sample(jax.random.key(0), 1), 0))
    input   e9 b4 | .  .  .  .
    answer          e9 b4 e9 b4
    """

    length: int = 20
    lengths: tuple[int, ...] = (30, 50)
    name: ClassVar[str] = "double_copy"

    def _sequence(self, key: Array, growth: Array) -> Sequence:
        return copies(self, key, growth, 2)
