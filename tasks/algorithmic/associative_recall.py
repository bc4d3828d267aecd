"""Associative recall: given an item of a list, answer with the item that followed it."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mnm_jax._checks import check_sizes
from tasks.algorithmic.bits import BitSequence, BitTask, rows, signs, with_flags

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssociativeRecall(BitTask):
    """Shows a list of items, each a few vectors of bits, then one item again; the answer is the item that followed it.

    A flag precedes every item of the list; a second flag precedes the item that is shown again, and the answer. The
    item that is shown again is uniform over all except the last. The length counts items. `T = (item_length + 1)
    (length + 2)`; inputs are 6 bits and two flags, D = 8; answers are 6 bits, C = 6. Meta-training, metrics and chance
    level: see `BitTask`. Oracle: search the list for the item, take the next one.

    Args:
      item_length: vectors per item. Other arguments: see `BitTask`.

    Raises:
      TypeError, ValueError: see `BitTask`; or shortest < 2, as some item has to follow.

    Examples:
      Three items of two vectors. The second one, "12 16", follows the item asked for:

      >>> task = AssociativeRecall(length=3, shortest=3, item_length=2)
      >>> batch = task.sample(jax.random.key(0), 2)
      >>> print(task.render(batch, 0))
      input   | 3a 1b | 12 16 | 19 1e ? 3a 1b ? .  .
      answer                                    12 16

    References:
      Graves et al., Neural Turing Machines, 2014, section 4.3: items of three vectors of 6 bits, 2 to 6 items, tested
      up to 20.
    """

    length: int = 6
    shortest: int = 2
    bits: int = 6
    item_length: int = 3
    lengths: tuple[int, ...] = (8, 12, 20)
    name: ClassVar[str] = "associative_recall"
    flags: ClassVar[tuple[str, ...]] = ("|", "?")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(item_length=self.item_length)
        if self.shortest < 2:
            raise ValueError(f"shortest must be >= 2, so that an item follows the one asked for, got {self.shortest}.")
        if min(self.lengths, default=2) < 2:
            raise ValueError(f"lengths must be >= 2, so that an item follows the one asked for, got {self.lengths}.")

    def draw(self, key: Array, growth: Array) -> BitSequence:
        length_key, item_key, query_key = jax.random.split(key, 3)
        length = self.draw_length(length_key, growth)
        vectors = signs(item_key, (self.length * self.item_length, self.bits))
        asked = jax.random.randint(query_key, (), 0, length - 1)

        # Blocks of a flag and an item: the list, then the item asked for, then the answer, which is not shown.
        block, place = jnp.divmod(jnp.arange((self.item_length + 1) * (self.length + 2)), self.item_length + 1)
        is_flag, mask = place == 0, block < length + 2
        item = jnp.where(block < length, block, asked + block - length)
        row = item * self.item_length + place - 1
        shown, answered = ~is_flag & (block <= length), ~is_flag & (block == length + 1)
        return BitSequence(
            inputs=with_flags(
                rows(vectors, row, shown), is_flag & (block < length), is_flag & (block >= length) & mask
            ),
            answers=rows(vectors, row, answered),
            loss_mask=answered,
            mask=mask,
        )
