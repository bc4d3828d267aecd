"""Pairs: how many random pairs a memory recalls after one pass, and whether it forgets what was overwritten."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tasks.algorithmic.bits import BitTask, Sequence, as_hex, check_at_least, rows, signs

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(BitTask):
    """Pairs of a random key and a random value, one a step; then the keys in another order, asked for their values.

    The time-line of three pairs, and of two whose values are then overwritten:

        input   b0a2=26 ba85=b2 fac7=44 b0a2 fac7 ba85
        answer                          26   44   b2

        input   b0a2=26 ba85=b2 ba85=44 b0a2=b7 b0a2 ba85
        answer                                  b7   44

    A sequence of `length` writes has as many keys, each written once; a share `overwriting` of the sequences has half
    of them (rounded up), of which the other writes write some or all again, in another order, with another value.
    The answer is what was written last under the very key asked for. `T = 2 length` (or 3/2); inputs are 8 bits of
    value (0 where one is asked for) and 16 of key: D = 24. The length counts writes.

    Test sets: "length=N" are N keys written once, "overwriting=N" are N keys written twice.

    Args:
      key_bits: in a key; `bits` are those in a value.
      overwriting: from 0 to 1.
      Others: see `BitTask`.

    Raises:
      ValueError: see `BitTask`; or overwriting outside of 0..1.

    >>> task = Pairs(length=3, shortest=3, overwriting=0)
    >>> print(task.render(task.sample(jax.random.key(0), 1), 0))
    input   b0a2=26 ba85=b2 fac7=44 b0a2 fac7 ba85
    answer                          26   44   b2
    """

    length: int = 16
    key_bits: int = 16
    overwriting: float = 0.5
    lengths: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32)
    name: ClassVar[str] = "pairs"

    def __post_init__(self):
        super().__post_init__()
        check_at_least(1, key_bits=self.key_bits)
        if not 0 <= self.overwriting <= 1:
            raise ValueError(f"overwriting must be from 0 to 1, got {self.overwriting}.")

    @property
    def input_features(self) -> int:
        return self.bits + self.key_bits

    def _sequence(self, key: Array, growth: Array) -> Sequence:
        length_key, kind_key, key_key, value_key, again_key, order_key = jax.random.split(key, 6)
        length = self._draw_length(length_key, growth)
        known = jnp.where(jax.random.bernoulli(kind_key, float(self.overwriting)), (length + 1) // 2, length)
        keys = signs(key_key, (self.length, self.key_bits))
        values = signs(value_key, (self.length, self.bits))

        write = jnp.arange(self.length)
        again = jnp.take(_shuffle(again_key, self.length, known), write - known, mode="clip")
        written = keys[jnp.where(write < known, write, again)]
        asked = keys[_shuffle(order_key, self.length, known)]
        # By content, not by number: should two keys be equal, the one written last counts.
        match = (asked @ written.T == self.key_bits) & (write < length)[None]
        recalled = values[jnp.max(jnp.where(match, write[None], 0), axis=1)]

        t = jnp.arange(self.length + (self.length if self.overwriting < 1 else (self.length + 1) // 2))
        shown, counted = t < length, (t >= length) & (t < length + known)
        key_vectors = rows(written, t, shown) + rows(asked, t - length, counted)
        inputs = jnp.concatenate([rows(values, t, shown), key_vectors], axis=1)
        return Sequence(inputs, rows(recalled, t - length, counted), counted, t < length + known)

    def _wider(self) -> dict[str, BitTask]:
        once = super()._wider()
        twice = {f"overwriting={task.length}": task._with_length(2 * task.length) for task in once.values()}
        return once | {name: dataclasses.replace(task, overwriting=1) for name, task in twice.items()}

    def _with_length(self, length: int) -> BitTask:
        return dataclasses.replace(self, length=length, shortest=length, overwriting=0)

    def _token(self, row: np.ndarray) -> str:
        value, key = row[: self.bits], row[self.bits :]
        return as_hex(key) + (f"={as_hex(value)}" if value.any() else "")


def _shuffle(key: Array, size: int, count: Array) -> Array:
    """`[size]`: the numbers below `count` in random order, then the others."""
    return jnp.argsort(jnp.where(jnp.arange(size) < count, jax.random.uniform(key, (size,)), 2))
