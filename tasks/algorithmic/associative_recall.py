"""Associative recall: shown an item of a list again, put out the item that followed it."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tasks.algorithmic.bits import BitTask, Sequence, check_at_least, rows, signs, with_flags

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class AssociativeRecall(BitTask):
    """A list of items, each of a few vectors of bits; then one of them, and the one that followed it is to come out.

    The time-line of three items of two vectors, asked for what followed the second:

        input   | 3a 1b | 12 16 | 19 1e ? 3a 1b ? .  .
        answer                                    12 16

    `T = (item_length + 1) (length + 2)`; inputs are 6 bits and two flags: D = 8. The length counts items.

    Args:
      item_length: vectors in an item.
      Others: see `BitTask`.

    Raises:
      ValueError: see `BitTask`; or `shortest` < 2, since some item has to follow.

    Source: Graves et al., 2014 (Neural Turing Machines), section 4.3: items of three vectors of 6 bits, 2 to 6 items,
    tested up to 20.

    >>> task = AssociativeRecall(length=3, shortest=3, item_length=2)
    >>> print(task.render(task.sample(jax.random.key(0), 1), 0))
    input   | 3a 1b | 12 16 | 19 1e ? 3a 1b ? .  .
    answer                                    12 16
    """

    length: int = 6
    shortest: int = 2
    bits: int = 6
    item_length: int = 3
    lengths: tuple[int, ...] = (8, 12, 20)
    name: ClassVar[str] = "associative_recall"
    flags: ClassVar[tuple[str, ...]] = ("|", "?")

    def __post_init__(self):
        super().__post_init__()
        check_at_least(1, item_length=self.item_length)
        if self.shortest < 2:
            raise ValueError(f"shortest must be >= 2, so that an item follows the one asked for, got {self.shortest}.")

    def _sequence(self, key: Array, growth: Array) -> Sequence:
        length_key, item_key, query_key = jax.random.split(key, 3)
        length = self._draw_length(length_key, growth)
        vectors = signs(item_key, (self.length * self.item_length, self.bits))
        asked = jax.random.randint(query_key, (), 0, length - 1)

        block, place = jnp.divmod(jnp.arange((self.item_length + 1) * (self.length + 2)), self.item_length + 1)
        is_flag, real = place == 0, block < length + 2
        # Blocks: the items, then the item asked for, then its follower, which is put out and not shown.
        item = jnp.where(block < length, block, asked + block - length)
        row, answered = item * self.item_length + place - 1, ~is_flag & (block == length + 1)
        shown = rows(vectors, row, ~is_flag & (block <= length))
        inputs = with_flags(shown, is_flag & (block < length), is_flag & (block >= length) & real)
        return Sequence(inputs, rows(vectors, row, answered), answered, real)
