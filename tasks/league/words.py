"""Parity and S3: the running product of the elements of a group, for which a state must not decay.

Shape letters: `T` time steps.
"""

import dataclasses
import itertools
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from mnm_jax._checks import check_flags, check_sizes
from tasks.league.tokens import LengthTask, TokenSequence
from tasks.sampling import draw_up_to

Array = jax.Array

SHORTEST = 2  # elements
_PERMUTATIONS = tuple(itertools.permutations(range(3)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words(LengthTask):
    """The word problem of a group: each step shows an element, and its answer is the product of all elements so far.

    Sequence: uniform elements g_1 ... g_T; the answer of step t is g_1 g_2 ... g_t. In training every step counts and
    the number of elements is uniform from 2 to `length`; with a curriculum its upper limit grows from 2. Sequences are
    padded to `T = length`. In the sets "length=N" all sequences have N elements and only the last answer counts.

    Meta-training, metrics and chance level: see `TokenTask`. Oracle: the product, element by element.

    Args:
      length: largest number of elements trained on.
      lengths: numbers of elements evaluated at the end (split "test"), besides the largest trained on.
      last: whether every sequence has `length` elements and only the last answer counts. Other arguments: see
        `TokenTask`.
    """

    length: int = 40
    lengths: tuple[int, ...] = (64, 128, 256)
    last: bool = False

    elements: ClassVar[tuple[str, ...]]
    products: ClassVar[tuple[tuple[int, ...], ...]]  # products[g][h] = g h

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(last=self.last)
        check_sizes(least=SHORTEST, length=self.length, lengths=min(self.lengths, default=SHORTEST))

    @property
    def tokens_known(self) -> int:
        return len(self.elements)

    @property
    def output_features(self) -> int:
        return len(self.elements)

    def draw(self, key: Array, growth: Array) -> TokenSequence:
        length_key, element_key = jax.random.split(key)
        length = self.length if self.last else draw_up_to(length_key, SHORTEST, self.length, growth)
        elements = jax.random.randint(element_key, (self.length,), 0, len(self.elements))
        table = jnp.asarray(self.products, jnp.int32)
        targets = jax.lax.associative_scan(lambda g, h: table[g, h], elements)
        step = jnp.arange(self.length)
        counts = step == length - 1 if self.last else step < length
        return TokenSequence(tokens=elements, targets=targets, loss_mask=counts, mask=step < length)

    def with_length(self, length: int) -> Self:
        return dataclasses.replace(self, length=length, last=True)

    def token(self, shown: int) -> str:
        return self.elements[shown]

    def answer(self, target: int) -> str:
        return self.elements[target]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity(Words):
    """Parity: the word problem of the group of two elements. The answer is whether the number of ones so far is odd.

    Sequence, training, metrics and arguments: see `Words`.

    Examples:
      >>> task = Parity(length=8)
      >>> print(task.render(task.sample(jax.random.key(0), 2), 1))
      input   0 0 0 1
      answer  0 0 0 1
    """

    name: ClassVar[str] = "parity"
    elements: ClassVar[tuple[str, ...]] = ("0", "1")
    products: ClassVar[tuple[tuple[int, ...], ...]] = ((0, 1), (1, 0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class S3(Words):
    """The word problem of S3, the permutations of three objects, the smallest group that does not commute.

    An element is written as the images of 0, 1 and 2; g h applies g first: (g h)(i) = h(g(i)).

    Sequence, training, metrics and arguments: see `Words`.

    Examples:
      >>> task = S3(length=5)
      >>> print(task.render(task.sample(jax.random.key(0), 2), 0))
      input   102 120 012
      answer  102 210 210

    References:
      Grazzi et al., ICLR 2025 (both tasks, for linear recurrences).
    """

    name: ClassVar[str] = "s3"
    elements: ClassVar[tuple[str, ...]] = tuple("".join(map(str, images)) for images in _PERMUTATIONS)
    products: ClassVar[tuple[tuple[int, ...], ...]] = tuple(
        tuple(_PERMUTATIONS.index(tuple(h[image] for image in g)) for h in _PERMUTATIONS) for g in _PERMUTATIONS
    )
