"""Selective copying."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mnm_jax._checks import check_sizes
from tasks.league.tokens import LengthTask, TokenSequence

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectiveCopy(LengthTask):
    """Shows items at random steps between fillers, and asks for the items in their order.

    Sequence: `length` steps, of which `items`, drawn at random, show an item each, drawn uniformly from the vocabulary,
    and the others the filler "."; then `items` steps "?", whose answers are the items in the order shown.
    T = length + items.

    Meta-training, metrics and chance level: see `TokenTask`. A curriculum grows the number of fillers. Test sets
    "length=N" have N steps before the questions. Oracle: a queue.

    Args:
      vocabulary: number of different items.
      items: number of items.
      length: steps before the questions, at least `items`.
      lengths: lengths evaluated at the end (split "test"), besides the one trained on. Other arguments: see
        `TokenTask`.

    Raises:
      TypeError, ValueError: see `TokenTask`; or a length below `items`.

    Examples:
      >>> task = SelectiveCopy(vocabulary=10, items=3, length=8, lengths=())
      >>> print(task.render(task.sample(jax.random.key(0), 2), 0))
      input   1 . 7 . 6 . . . ? ? ?
      answer                  1 7 6

    References:
      Gu and Dao, Mamba, 2023; Poli et al., MAD, ICML 2024.
    """

    vocabulary: int = 16
    items: int = 8
    length: int = 64
    lengths: tuple[int, ...] = (128, 256)
    name: ClassVar[str] = "selective_copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(vocabulary=self.vocabulary, items=self.items)
        for name, least in (("length", self.length), ("lengths", min(self.lengths, default=self.length))):
            if least < self.items:
                raise ValueError(f"{name} must be >= items = {self.items}, got {least}.")

    @property
    def tokens_known(self) -> int:
        return self.vocabulary + 2

    @property
    def output_features(self) -> int:
        return self.vocabulary

    def draw(self, key: Array, growth: Array) -> TokenSequence:
        item_key, place_key = jax.random.split(key)
        items = jax.random.randint(item_key, (self.items,), 0, self.vocabulary)
        # The curriculum shortens a sequence, which is then padded.
        length = self.items + jnp.ceil((self.length - self.items) * growth).astype(jnp.int32)
        step = jnp.arange(self.length + self.items)
        drawn = jnp.where(step < length, jax.random.uniform(place_key, step.shape), 2)
        chosen = jnp.argsort(jnp.argsort(drawn)) < self.items
        shown = jnp.where(chosen, items[jnp.cumsum(chosen) - 1], self.vocabulary)
        counts = (step >= length) & (step < length + self.items)
        tokens = jnp.where(counts, self.vocabulary + 1, shown)
        targets = items[jnp.clip(step - length, 0, self.items - 1)]
        return TokenSequence(tokens=tokens, targets=targets, loss_mask=counts, mask=step < length + self.items)

    def token(self, shown: int) -> str:
        return {self.vocabulary: ".", self.vocabulary + 1: "?"}.get(shown, str(shown))
