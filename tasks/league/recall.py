"""Multi-query associative recall."""

import dataclasses
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from mnm_jax._checks import check_flags, check_fraction, check_sizes
from tasks.arguments import to_sizes
from tasks.league.tokens import TokenSequence, TokenTask
from tasks.sampling import draw_up_to

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recall(TokenTask):
    """Multi-query associative recall: shows pairs of a key and a value, then keys again; the answers are the values.

    Sequence: the pairs, k_1 v_1 ... k_P v_P; then T - 2 P steps, each of which shows the filler "." or, with
    probability 1 - `filler`, one of the P keys, drawn uniformly, whose value is the answer of the step. Keys are drawn
    without replacement from one half of the vocabulary, values with replacement from the other; the filler is a token
    of its own. `T = length`, and every sequence draws P uniformly from 1 to `pairs`.

    Meta-training, metrics and chance level: see `TokenTask`. A curriculum grows the number of pairs. Test sets
    "pairs=N" have N pairs each, with T = 4 N if that is longer than `length`. Oracle: a hash table.

    Args:
      vocabulary: keys and values together, an even number.
      pairs: largest number of pairs trained on.
      length: T, more than 2 `pairs`.
      filler: fraction of fillers after the pairs, below 1.
      more_pairs: numbers of pairs evaluated at the end (split "test"), besides the largest trained on.
      all_pairs: whether every sequence has `pairs` pairs. Other arguments: see `TokenTask`.

    Raises:
      TypeError, ValueError: see `TokenTask`; or an odd vocabulary, more pairs than keys, a length of 2 `pairs` or
        less, or `filler` outside [0, 1).

    Examples:
      >>> task = Recall(vocabulary=20, pairs=3, length=10, more_pairs=(), all_pairs=True)
      >>> print(task.render(task.sample(jax.random.key(0), 2), 0))
      input   k4 v2 k3 v0 k6 v7 k4 k6 . k6
      answer                    v2 v7   v7

    References:
      Arora et al., Zoology, ICLR 2024. There each key is asked for once, after a distance that follows a power law.
    """

    vocabulary: int = 512
    pairs: int = 16
    length: int = 64
    filler: float = 0.25
    more_pairs: tuple[int, ...] = (8, 16, 32, 64)
    all_pairs: bool = False
    name: ClassVar[str] = "recall"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "more_pairs", to_sizes("more_pairs", self.more_pairs))
        check_sizes(vocabulary=self.vocabulary, pairs=self.pairs, length=self.length)
        check_flags(all_pairs=self.all_pairs)
        if self.vocabulary % 2:
            raise ValueError(f"vocabulary must be even, half keys and half values, got {self.vocabulary}.")
        for name, most in (("pairs", self.pairs), ("more_pairs", max(self.more_pairs, default=1))):
            if most > self.vocabulary // 2:
                raise ValueError(
                    f"{name} must be <= vocabulary / 2 = {self.vocabulary // 2}, one key each, got {most}."
                )
        if self.length <= 2 * self.pairs:
            raise ValueError(f"length must be > 2 * pairs = {2 * self.pairs}, got {self.length}.")
        check_fraction(filler=self.filler)
        if self.filler == 1:
            raise ValueError("filler must be < 1, got 1: no key would be asked for.")

    @property
    def tokens_known(self) -> int:
        return self.vocabulary + 1

    @property
    def output_features(self) -> int:
        return self.vocabulary // 2

    def draw(self, key: Array, growth: Array) -> TokenSequence:
        count_key, key_key, value_key, ask_key, filler_key = jax.random.split(key, 5)
        keys = jax.random.permutation(key_key, self.vocabulary // 2)[: self.pairs]
        values = jax.random.randint(value_key, (self.pairs,), 0, self.vocabulary // 2)
        count = self.pairs if self.all_pairs else draw_up_to(count_key, 1, self.pairs, growth)
        step = jnp.arange(self.length)
        later = step >= 2 * count
        pair = jnp.where(later, jax.random.randint(ask_key, step.shape, 0, count), step // 2)
        counts = later & ~jax.random.bernoulli(filler_key, float(self.filler), step.shape)
        shown = jnp.where(step % 2 == 1, self.vocabulary // 2 + values[pair], keys[pair])
        tokens = jnp.where(later, jnp.where(counts, keys[pair], self.vocabulary), shown)
        return TokenSequence(tokens=tokens, targets=values[pair], loss_mask=counts, mask=jnp.ones(self.length, bool))

    def wider_sets(self) -> dict[str, Self]:
        sizes = dict.fromkeys((self.pairs, *self.more_pairs))
        return {
            f"pairs={n}": dataclasses.replace(self, pairs=n, length=max(self.length, 4 * n), all_pairs=True)
            for n in sizes
        }

    def token(self, shown: int) -> str:
        half = self.vocabulary // 2
        return "." if shown == self.vocabulary else f"k{shown}" if shown < half else f"v{shown - half}"

    def answer(self, target: int) -> str:
        return f"v{target}"
