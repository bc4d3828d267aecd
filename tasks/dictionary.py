"""Dictionary inference: translate strings with a dictionary that is new in every sequence."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax.training._task import Batch, Mean
from tasks.sampling import draw_batches
from tasks.scoring import accuracy, cross_entropy

Array = jax.Array

LETTERS = 13
ASK = 2 * LETTERS  # the input that asks for one letter of the answer
SOURCE = "abcdefghijklm"
TARGET = "NOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """One-shot translation: S example pairs, then queries, under a fresh bijection of 13 letters onto 13.

    Each sequence draws a bijection. Support: `support` pairs, a source string of `length` letters and then its
    translation, one letter a step, letters uniform with replacement. Then `queries` strings made of letters seen in
    the support; after each the input asks `length` times and the model answers letter by letter. Loss (nats) and
    accuracy count those steps only. Chance is one over the number of distinct target letters seen.

    Meta-training: the outer loss is minimised over sequences drawn afresh for every update, each with a dictionary of
    its own; nothing about a dictionary survives its sequence, so what is learned is how to bind, not what.

    The time-line for length 2, one support pair and one query:

        input   h d Z R h h ? ?
        answer              Z Z

    `T = 2 length (support + queries)`; inputs are one-hot over 13 source letters, 13 target letters and "?": D = 27.

    Args:
      length: n, letters a string.
      support: S, pairs shown.
      queries: strings asked for in a sequence.
      evaluation_batches: batches in each evaluation set.
      mixed: train on easier sequences of the same T as well: each draws its length from 1..n, and gives its support
        the usual number of letters and up to half of those of the queries. Evaluations are as without.
      wider: also evaluate (split "test") with longer strings and larger supports than trained on.

    Raises:
      ValueError: for a number below 1.

    Source: Munkhdalai et al., NeurIPS 2019, section 4.1; sizes the paper leaves open are ours.
    """

    length: int = 1
    support: int = 4
    queries: int = 5
    evaluation_batches: int = 8
    wider: bool = True
    mixed: bool = False

    def __post_init__(self):
        for name in ("length", "support", "queries", "evaluation_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")

    @property
    def name(self) -> str:
        return "dictionary"

    @property
    def input_features(self) -> int:
        return 2 * LETTERS + 1

    @property
    def output_features(self) -> int:
        return LETTERS

    loader = None

    def encoder(self, rngs: nnx.Rngs) -> Callable[[Array], Array]:
        """sqrt(D) times the one-hot input: features of mean square one, which initialisers of weights assume."""
        del rngs
        return lambda inputs: inputs * self.input_features**0.5

    def sample(self, key: Array, batch_size: int, step: Array | None = None) -> Batch:
        """A fresh batch, each example with a dictionary of its own, whatever the step; pure, runs on the device."""
        del step
        tokens, targets, asked, real = jax.vmap(self._sequence)(jax.random.split(key, batch_size))
        inputs = jax.nn.one_hot(tokens.T, self.input_features)
        return Batch(inputs, targets.T, asked.T.astype(inputs.dtype), real.T)

    def _sequence(self, key: Array) -> tuple[Array, Array, Array, Array]:
        """(tokens, targets, asked, real), `[T]` each, of one sequence; what is left over at the end is not real."""
        dictionary_key, support_key, query_key = jax.random.split(key, 3)
        dictionary = jax.random.permutation(dictionary_key, LETTERS)
        room, more = self.length * self.support, self.length * self.queries  # letters of all strings
        length = self.length
        if self.mixed:
            length = jax.random.randint(jax.random.fold_in(key, 0), (), 1, self.length + 1)
        pairs, lines = room // length, room // length + more // length
        if self.mixed:
            most = lines - jnp.maximum(more // 2 // length, 1)
            pairs = jax.random.randint(jax.random.fold_in(key, 1), (), pairs, most + 1)

        shown = jax.random.randint(support_key, (room + more,), 0, LETTERS)
        seen = jnp.zeros(LETTERS, bool).at[shown].max(jnp.arange(room + more) < pairs * length)
        query = jax.random.categorical(query_key, jnp.where(seen, 0.0, -jnp.inf), shape=(more,))

        line, place = jnp.divmod(jnp.arange(2 * (room + more)), 2 * length)
        is_query, second, real = line >= pairs, place >= length, line < lines
        at = line * length + place % length
        letter = jnp.where(is_query, query[at - pairs * length], shown[at])
        translation = dictionary[letter]
        asked = is_query & second & real
        tokens = jnp.where(second, jnp.where(is_query, ASK, LETTERS + translation), letter)
        return tokens, jnp.where(asked, translation, 0), asked, real

    def evaluations(self, split: str, batch_size: int) -> Mapping[str, Callable[[], Iterable[Batch]]]:
        """The trained setting, and for "test" also two and four times the support and longer strings."""
        plain = dataclasses.replace(self, mixed=False)
        if split == "valid":
            return {"": partial(plain._batches, 1, batch_size)}
        sets = {"": plain}
        if self.wider:
            sets |= {
                f"support={s}": dataclasses.replace(plain, support=s) for s in (2 * self.support, 4 * self.support)
            }
            sets |= {f"length={n}": dataclasses.replace(plain, length=n) for n in (self.length + 1, self.length + 2)}
        return {name: partial(task._batches, 2, batch_size) for name, task in sets.items()}

    def _batches(self, seed: int, batch_size: int) -> Iterable[Batch]:
        return draw_batches(self, seed, self.evaluation_batches, batch_size)

    def loss(self, logits: Array, batch: Batch) -> Mean:
        return cross_entropy(logits, batch)

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """accuracy of the answers, and chance: one over the distinct target letters seen."""
        distinct = jnp.sum(jnp.max(batch.inputs[:, :, LETTERS:ASK], 0), -1)
        chance = batch.loss_mask / jnp.maximum(distinct, 1)[None]
        return {"accuracy": accuracy(logits, batch), "chance": Mean(jnp.sum(chance), jnp.sum(batch.loss_mask))}

    def tokens(self, batch: Batch, index: int) -> list[str]:
        """What stands on the time axis: a letter of either alphabet, or "?"."""
        real = np.asarray(batch.inputs[:, index])[np.asarray(batch.mask[:, index])]
        return [(SOURCE + TARGET + "?")[t] for t in np.argmax(real, -1)]

    def render(self, batch: Batch, index: int) -> str:
        """Example `index` as a time-line: what goes in, and what is to come out.

        >>> task = Dictionary(length=2, support=1, queries=1)
        >>> print(task.render(task.sample(jax.random.key(0), 1), 0))
        input   h d Z R h h ? ?
        answer              Z Z
        """
        answers = [
            TARGET[t] if m else " "
            for t, m in zip(np.asarray(batch.targets[:, index]), np.asarray(batch.loss_mask[:, index]), strict=True)
        ]
        lines = ["input   " + " ".join(self.tokens(batch, index)), "answer  " + " ".join(answers)]
        return "\n".join(line.rstrip() for line in lines)
