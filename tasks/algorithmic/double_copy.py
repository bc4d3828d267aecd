"""Double copy: repeat a sequence of vectors twice."""

import dataclasses
from typing import ClassVar

import jax

from tasks.algorithmic.bits import BitSequence, BitTask
from tasks.algorithmic.copy import draw_copies

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoubleCopy(BitTask):
    """Shows vectors of bits and a flag; the answers, at the following steps without input, are the same vectors twice.

    The length counts vectors. `T = 3 length + 1`; inputs are 8 bits and the flag, D = 9; answers are 8 bits, C = 8. No
    input marks the start of the second copy. Meta-training, metrics, chance level and arguments: see `BitTask`. Oracle:
    a list that is read twice.

    Examples:
      >>> task = DoubleCopy(length=2, shortest=2)
      >>> batch = task.sample(jax.random.key(0), 2)
      >>> print(task.render(batch, 0))
      input   e9 b4 | .  .  .  .
      answer          e9 b4 e9 b4

    References:
      Le et al., Learning to Remember More with Less Memorization, ICLR 2019 (arXiv 1901.01347), section 4.2 ("double");
      bits and lengths as in `Copy`.
    """

    length: int = 20
    lengths: tuple[int, ...] = (30, 50)
    name: ClassVar[str] = "double_copy"

    def draw(self, key: Array, growth: Array) -> BitSequence:
        return draw_copies(self, key, growth, 2)
