"""Dictionary inference: translate strings with a dictionary that is new in every sequence.

Shape letters: `T` time steps, `B` examples, `D` input features.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax._checks import check_flags, check_sizes
from mnm_jax.training import Batch, Mean
from tasks.arguments import unwrap_numbers
from tasks.sampling import evaluation_set
from tasks.scoring import accuracy, cross_entropy
from tasks.timeline import time_line

Array = jax.Array

LETTERS = 13
ASK = 2 * LETTERS  # the input that asks for one letter of the answer
SOURCE = "abcdefghijklm"
TARGET = "NOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dictionary:
    """One-shot translation: example pairs of strings, then queries, under a new bijection of 13 letters onto 13.

    Sequence: `support` pairs, each a source string of `length` letters and its translation, one letter per step. Then
    `queries` source strings, each followed by `length` steps that ask ("?") for its translation letter by letter. Only
    these steps count. `T = 2 length (support + queries)`; inputs are one-hot over 13 source letters, 13 target letters
    and "?", scaled by sqrt(D) in `encoder`: D = 27. Outputs are 13 target letters.

    Meta-training: every sequence draws a new bijection, uniform over all; support letters are uniform with replacement,
    query letters uniform over those seen in the support. One update minimises the cross entropy (nats) of the answers
    over a batch of such sequences. A dictionary does not outlive its sequence and the memory starts each one empty, so
    the slow parameters learn how to bind pairs, not which pairs.

    Metric: accuracy, the fraction of right letters. Chance: one over the number of distinct target letters seen,
    reported as `chance`. Oracle: a look-up table of the support; it answers every letter. Evaluation sequences use keys
    that training does not use.

    Args:
      length: n, letters per string.
      support: S, pairs shown.
      queries: strings asked for per sequence.
      evaluation_batches: batches of each evaluation set.
      wider: also evaluates (split "test") with longer strings and larger supports than trained on.
      mixed: also trains on easier sequences of the same `T`: each sequence draws its length from 1..n, and gives its
        support the usual number of letters and up to half of the queries' letters. Evaluation sets are not mixed.

    Raises:
      TypeError: an argument of another type.
      ValueError: a number below 1.

    Examples:
      A bijection with d -> R and h -> Z; the query "hh" is answered "ZZ". The answer row shows the target of every
      step that counts (`loss_mask` 1):

      >>> task = Dictionary(length=2, support=1, queries=1)
      >>> batch = task.sample(jax.random.key(0), 4)
      >>> batch.inputs.shape, batch.targets.shape
      ((8, 4, 27), (8, 4))
      >>> print(task.render(batch, 0))
      input   h d Z R h h ? ?
      answer              Z Z

    References:
      Munkhdalai et al., Metalearned Neural Memory, NeurIPS 2019, section 4.1. The paper leaves open how letters
      are drawn and how many queries a sequence has; both are ours.
    """

    length: int = 1
    support: int = 4
    queries: int = 5
    evaluation_batches: int = 8
    wider: bool = True
    mixed: bool = False

    name: ClassVar[str] = "dictionary"
    input_features: ClassVar[int] = 2 * LETTERS + 1
    output_features: ClassVar[int] = LETTERS
    loader: ClassVar[None] = None

    def __post_init__(self) -> None:
        unwrap_numbers(self)
        names = ("length", "support", "queries", "evaluation_batches")
        check_sizes(**{name: getattr(self, name) for name in names})
        check_flags(wider=self.wider, mixed=self.mixed)

    def encoder(self, rngs: nnx.Rngs) -> Callable[[Array], Array]:
        """Returns a map that scales one-hot inputs by sqrt(D): mean square one, which weight initialisers assume."""
        del rngs
        return lambda inputs: inputs * self.input_features**0.5

    def sample(self, key: Array, batch_size: int, step: Array | int | None = None) -> Batch:
        """Returns a new batch, each example with a dictionary of its own; the same distribution at every step."""
        del step
        return _sample(self, key, batch_size)

    def _sequence(self, key: Array) -> tuple[Array, Array, Array, Array]:
        """Returns (tokens, targets, asked, mask) of one sequence, `[T]` each."""
        dictionary_key, support_key, query_key = jax.random.split(key, 3)
        dictionary = jax.random.permutation(dictionary_key, LETTERS)
        # Letters of the support and of the queries; a line is a string and its translation.
        support_letters, query_letters = self.length * self.support, self.length * self.queries
        length: int | Array = self.length
        if self.mixed:  # `fold_in(key, i)` with i < 3 would be a key of the split above
            length = jax.random.randint(jax.random.fold_in(key, 3), (), 1, self.length + 1)
        pairs: int | Array = support_letters // length
        lines = pairs + query_letters // length
        if self.mixed:
            most = lines - jnp.maximum(query_letters // 2 // length, 1)
            pairs = jax.random.randint(jax.random.fold_in(key, 4), (), pairs, most + 1)

        letters = support_letters + query_letters
        shown = jax.random.randint(support_key, (letters,), 0, LETTERS)
        seen = jnp.zeros(LETTERS, bool).at[shown].max(jnp.arange(letters) < pairs * length)
        query = jax.random.categorical(query_key, jnp.where(seen, 0.0, -jnp.inf), shape=(query_letters,))

        line, place = jnp.divmod(jnp.arange(2 * letters), 2 * length)
        is_query, is_translation, mask = line >= pairs, place >= length, line < lines
        position = line * length + place % length
        letter = jnp.where(is_query, query[position - pairs * length], shown[position])
        translation = dictionary[letter]
        asked = is_query & is_translation & mask
        tokens = jnp.where(is_translation, jnp.where(is_query, ASK, LETTERS + translation), letter)
        return tokens, jnp.where(asked, translation, 0), asked, mask

    def evaluations(self, split: str, batch_size: int) -> Mapping[str, Callable[[], Iterable[Batch]]]:
        """Returns the trained setting (""); for "test" also two and four times the support, and longer strings."""
        plain = dataclasses.replace(self, mixed=False)
        sets = {"": plain}
        if split == "test" and self.wider:
            for support in (2 * self.support, 4 * self.support):
                sets[f"support={support}"] = dataclasses.replace(plain, support=support)
            for length in (self.length + 1, self.length + 2):
                sets[f"length={length}"] = dataclasses.replace(plain, length=length)
        return {name: evaluation_set(task, split, self.evaluation_batches, batch_size) for name, task in sets.items()}

    def loss(self, logits: Array, batch: Batch) -> Mean:
        """Returns the cross entropy in nats per letter asked for; logits `[T, B, 13]`."""
        return cross_entropy(logits, batch)

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """Returns "accuracy", and "chance": one over the number of distinct target letters seen."""
        distinct = jnp.sum(jnp.max(batch.inputs[:, :, LETTERS:ASK], 0), -1)
        chance = batch.loss_mask / jnp.maximum(distinct, 1)[None]
        return {
            "accuracy": accuracy(logits, batch),
            "chance": Mean(total=jnp.sum(chance), count=jnp.sum(batch.loss_mask)),
        }

    def tokens(self, batch: Batch, index: int) -> list[str]:
        """Returns the input of each step of example `index`: a letter of either alphabet, or "?"."""
        inputs = np.asarray(batch.inputs[:, index])[np.asarray(batch.mask[:, index])]
        return [(SOURCE + TARGET + "?")[token] for token in np.argmax(inputs, -1)]

    def render(self, batch: Batch, index: int) -> str:
        """Returns example `index` as a time-line of inputs and answers."""
        tokens = self.tokens(batch, index)
        steps = zip(np.asarray(batch.targets[:, index]), np.asarray(batch.loss_mask[:, index]), strict=True)
        answers = [TARGET[target] if counts else "" for target, counts in steps]
        return time_line(tokens, answers[: len(tokens)])


@partial(jax.jit, static_argnums=(0, 2), inline=True)  # compiled as a whole where a user draws a batch
def _sample(task: Dictionary, key: Array, batch_size: int) -> Batch:
    tokens, targets, asked, mask = jax.vmap(task._sequence)(jax.random.split(key, batch_size))
    inputs = jax.nn.one_hot(tokens.T, task.input_features)
    return Batch(inputs=inputs, targets=targets.T, loss_mask=asked.T.astype(inputs.dtype), mask=mask.T)
