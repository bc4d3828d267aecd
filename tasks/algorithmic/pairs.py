"""Pairs: how many random pairs a memory recalls after one pass, and whether a new value replaces the old one."""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax._checks import check_fraction, check_sizes
from tasks.algorithmic.bits import BitSequence, BitTask, as_hex, rows, signs

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(BitTask):
    """Shows pairs of a random key and a random value, one write per step, then every key in another order.

    Most sequences write each of `length` keys once. A share `overwriting` of them has half as many keys (rounded up);
    the other writes give keys that are already written, in another order, a new value. The answer to a key is the value
    written last under it. The length counts writes. `T = 2 length` (3/2 length if all sequences overwrite); inputs are
    8 bits of value, 0 at the steps of answers, and 16 of key, D = 24; answers are 8 bits, C = 8.

    Meta-training, metrics and chance level: see `BitTask`. Test sets: "length=N" has N keys written once,
    "overwriting=N" has N keys written twice. Oracle: a hash table.

    Args:
      key_bits: bits per key; `bits` counts the bits per value.
      overwriting: share of the sequences that write keys again, from 0 to 1. Other arguments: see `BitTask`.

    Raises:
      TypeError, ValueError: see `BitTask`; or key_bits < 1, or overwriting outside [0, 1].

    Examples:
      >>> task = Pairs(length=3, shortest=3, overwriting=0)
      >>> batch = task.sample(jax.random.key(0), 2)
      >>> print(task.render(batch, 0))
      input   b0a2=26 ba85=b2 fac7=44 b0a2 fac7 ba85
      answer                          26   44   b2

      Two keys, each written twice; the second value counts:

      >>> task = Pairs(length=4, shortest=4, overwriting=1)
      >>> print(task.render(task.sample(jax.random.key(0), 2), 0))
      input   b0a2=26 ba85=b2 ba85=44 b0a2=b7 b0a2 ba85
      answer                                  b7   44

    References:
      The task is ours: a probe of a memory's capacity.
    """

    length: int = 16
    key_bits: int = 16
    overwriting: float = 0.5
    lengths: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32)
    name: ClassVar[str] = "pairs"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(key_bits=self.key_bits)
        check_fraction(overwriting=self.overwriting)

    @property
    def input_features(self) -> int:
        return self.bits + self.key_bits

    def draw(self, key: Array, growth: Array) -> BitSequence:
        length_key, kind_key, key_key, value_key, again_key, order_key = jax.random.split(key, 6)
        length = self.draw_length(length_key, growth)
        distinct = jnp.where(jax.random.bernoulli(kind_key, float(self.overwriting)), (length + 1) // 2, length)
        keys = signs(key_key, (self.length, self.key_bits))
        values = signs(value_key, (self.length, self.bits))

        write = jnp.arange(self.length)
        again = jnp.take(_shuffle(again_key, self.length, distinct), write - distinct, mode="clip")
        written = keys[jnp.where(write < distinct, write, again)]
        asked = keys[_shuffle(order_key, self.length, distinct)]
        # By content, not by number: if two random keys are equal, the value written last counts.
        match = (asked @ written.T == self.key_bits) & (write < length)[None]
        recalled = values[jnp.max(jnp.where(match, write[None], 0), axis=1)]

        t = jnp.arange(self.length + (self.length if self.overwriting < 1 else (self.length + 1) // 2))
        mask = t < length + distinct
        shown, answered = t < length, (t >= length) & mask
        key_vectors = rows(written, t, shown) + rows(asked, t - length, answered)
        return BitSequence(
            inputs=jnp.concatenate([rows(values, t, shown), key_vectors], axis=1),
            answers=rows(recalled, t - length, answered),
            loss_mask=answered,
            mask=mask,
        )

    def wider_sets(self) -> dict[str, Self]:
        lengths = dict.fromkeys((self.length, *self.lengths))
        twice = {f"overwriting={n}": dataclasses.replace(self.with_length(2 * n), overwriting=1) for n in lengths}
        return super().wider_sets() | twice

    def with_length(self, length: int) -> Self:
        return dataclasses.replace(self, length=length, shortest=length, overwriting=0)

    def token(self, shown: np.ndarray) -> str:
        value, key = shown[: self.bits], shown[self.bits :]
        return as_hex(key) + (f"={as_hex(value)}" if value.any() else "")


def _shuffle(key: Array, size: int, count: Array) -> Array:
    """Returns `[size]`: the integers below `count` in random order, then the others."""
    return jnp.argsort(jnp.where(jnp.arange(size) < count, jax.random.uniform(key, (size,)), 2))
