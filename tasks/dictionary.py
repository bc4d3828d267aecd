"""Dictionary inference: translate strings with a dictionary that is new in every sequence."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax.training.task import Batch, Mean
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

    def sample(self, key: Array, batch_size: int) -> Batch:
        """A fresh batch, each example with a dictionary of its own; pure, runs on the device."""
        tokens, targets, asked = jax.vmap(self._sequence)(jax.random.split(key, batch_size))
        inputs = jax.nn.one_hot(tokens.T, self.input_features)
        return Batch(inputs, targets.T, asked.T.astype(inputs.dtype), jnp.ones_like(asked.T))

    def _sequence(self, key: Array) -> tuple[Array, Array, Array]:
        """(tokens, targets, asked), `[T]` each, of one sequence."""
        dictionary_key, support_key, query_key = jax.random.split(key, 3)
        dictionary = jax.random.permutation(dictionary_key, LETTERS)
        shown = jax.random.randint(support_key, (self.support, self.length), 0, LETTERS)
        seen = jnp.zeros(LETTERS).at[shown.reshape(-1)].set(1)
        query = jax.random.categorical(query_key, jnp.log(seen), shape=(self.queries, self.length))

        def join(first, second):  # the two strings of each line, one after the other, line by line
            return jnp.concatenate([first, second], 1).reshape(-1)

        tokens = jnp.concatenate([join(shown, LETTERS + dictionary[shown]), join(query, jnp.full_like(query, ASK))])
        targets = jnp.concatenate(
            [jnp.zeros(shown.size * 2, dictionary.dtype), join(jnp.zeros_like(query), dictionary[query])]
        )
        return tokens, targets, tokens == ASK

    def evaluations(self, split: str, batch_size: int) -> Mapping[str, Callable[[], Iterable[Batch]]]:
        """The trained setting, and for "test" also two and four times the support and longer strings."""
        if split == "valid":
            return {"": partial(self._batches, 1, batch_size)}
        sets = {"": self}
        if self.wider:
            sets |= {
                f"support={s}": dataclasses.replace(self, support=s) for s in (2 * self.support, 4 * self.support)
            }
            sets |= {f"length={n}": dataclasses.replace(self, length=n) for n in (self.length + 1, self.length + 2)}
        return {name: partial(task._batches, 2, batch_size) for name, task in sets.items()}

    def _batches(self, seed: int, batch_size: int) -> Iterable[Batch]:
        # Keys far from those of training, whose seeds are small numbers.
        key = jax.random.fold_in(jax.random.key(2**31 - 1), seed)
        for index in range(self.evaluation_batches):
            yield self.sample(jax.random.fold_in(key, index), batch_size)

    def loss(self, logits: Array, batch: Batch) -> Mean:
        return cross_entropy(logits, batch)

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """accuracy of the answers, and chance: one over the distinct target letters seen."""
        distinct = jnp.sum(jnp.max(batch.inputs[:, :, LETTERS:ASK], 0), -1)
        chance = batch.loss_mask / jnp.maximum(distinct, 1)[None]
        return {"accuracy": accuracy(logits, batch), "chance": Mean(jnp.sum(chance), jnp.sum(batch.loss_mask))}

    def tokens(self, batch: Batch, index: int) -> list[str]:
        """What stands on the time axis: a letter of either alphabet, or "?"."""
        return [(SOURCE + TARGET + "?")[t] for t in np.argmax(np.asarray(batch.inputs[:, index]), -1)]

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
