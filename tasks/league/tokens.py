"""Common parts of the tasks on tokens: sampling, curriculum, evaluation sets, score and pictures.

Shape letters: `T` time steps, `B` examples, `D` input features, `C` classes.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax._checks import check_flags, check_sizes
from mnm_jax.training import Batch, Mean
from tasks.arguments import to_sizes, unwrap_numbers
from tasks.sampling import evaluation_set, growth_at
from tasks.scoring import accuracy, cross_entropy
from tasks.timeline import time_line

Array = jax.Array


class TokenSequence(NamedTuple):
    """One sequence, padding last.

    Attributes:
      tokens: `[T]` int32.
      targets: classes, `[T]` int32; ignored where `loss_mask` is False.
      loss_mask: `[T]` bool, True where the answer counts.
      mask: `[T]` bool, False = padding.
    """

    tokens: Array
    targets: Array
    loss_mask: Array
    mask: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenTask(abc.ABC):
    """A task whose inputs are tokens and whose answers are classes.

    Meta-training: every sequence is a new draw. One update minimises the cross entropy (nats) of the answers over a
    batch of such sequences. With a curriculum the size of the sequences grows linearly over the first `curriculum`
    updates.

    Metrics: accuracy, the fraction of right answers; chance, one over the number of classes. Oracle: the answers follow
    from the tokens; tests/tasks/test_league.py derives them. Evaluation draws its sequences with random keys that
    training does not use.

    A subclass defines `name`, `tokens_known`, `output_features`, `draw` and `label`; see `SelectiveCopy`.

    Args:
      curriculum: updates until the sequences have their largest size; 0: they always have it.
      wider: whether to evaluate (split "test") the sets of `wider_sets`, too.
      embedding_features: `D`, features of the learned embedding of a token.
      evaluation_batches: batches of each evaluation set.

    Raises:
      TypeError: an argument that is not a whole number, or sizes that are no tuple.
      ValueError: a number below 1 (below 0 for the curriculum).
    """

    curriculum: int = 0
    wider: bool = True
    embedding_features: int = 64
    evaluation_batches: int = 8

    name: ClassVar[str]
    loader: ClassVar[None] = None

    def __post_init__(self) -> None:
        unwrap_numbers(self)
        check_sizes(embedding_features=self.embedding_features, evaluation_batches=self.evaluation_batches)
        check_sizes(least=0, curriculum=self.curriculum)
        check_flags(wider=self.wider)

    @property
    def input_features(self) -> int:
        """`D`."""
        return self.embedding_features

    @property
    @abc.abstractmethod
    def tokens_known(self) -> int:
        """The number of tokens."""

    @property
    @abc.abstractmethod
    def output_features(self) -> int:
        """`C`."""

    @abc.abstractmethod
    def draw(self, key: Array, growth: Array) -> TokenSequence:
        """Returns a new sequence. `growth`: progress of the curriculum, from 0 to 1."""

    @abc.abstractmethod
    def label(self, token: int) -> str:
        """Returns the token of one step as text."""

    def wider_sets(self) -> dict[str, Self]:
        """Returns the settings that are evaluated at the end besides the trained one, by name."""
        return {}

    def answer(self, target: int) -> str:
        """Returns an answer as text."""
        return str(target)

    def encoder(self, rngs: nnx.Rngs) -> Callable[[Array], Array]:
        """Returns a learned embedding."""
        return nnx.Embed(self.tokens_known, self.embedding_features, rngs=rngs)

    def sample(self, key: Array, batch_size: int, step: Array | int | None = None) -> Batch:
        """Returns a new batch, as trained on after `step` updates; None: after the curriculum."""
        growth = growth_at(step, self.curriculum)
        drawn = jax.vmap(self.draw, (0, None))(jax.random.split(key, batch_size), growth)
        tokens, targets, loss_mask, mask = (x.T for x in drawn)
        targets = jnp.where(loss_mask, targets, 0)
        return Batch(inputs=tokens, targets=targets, loss_mask=loss_mask.astype(jnp.float32), mask=mask)

    def evaluations(self, split: str, batch_size: int) -> Mapping[str, Callable[[], Iterable[Batch]]]:
        """Returns the trained setting (""); for "test" also the settings of `wider_sets`."""
        sets = {"": self} | (self.wider_sets() if split == "test" and self.wider else {})
        return {name: evaluation_set(task, split, self.evaluation_batches, batch_size) for name, task in sets.items()}

    def loss(self, logits: Array, batch: Batch) -> Mean:
        """Returns the cross entropy in nats per answer; logits `[T, B, C]`."""
        return cross_entropy(logits, batch)

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """Returns "accuracy", and "chance", which is 1 / C."""
        right = accuracy(logits, batch)
        return {"accuracy": right, "chance": Mean(total=right.count / self.output_features, count=right.count)}

    def tokens(self, batch: Batch, index: int) -> list[str]:
        """Returns the input of each step as text."""
        real = np.asarray(batch.mask[:, index])
        return [self.label(token) for token in np.asarray(batch.inputs[:, index])[real].tolist()]

    def render(self, batch: Batch, index: int) -> str:
        """Returns example `index` as a time-line of inputs and answers."""
        tokens = self.tokens(batch, index)
        steps = zip(np.asarray(batch.targets[:, index]).tolist(), np.asarray(batch.loss_mask[:, index]), strict=True)
        answers = [self.answer(target) if counts else "" for target, counts in steps]
        return time_line(tokens, answers[: len(tokens)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthTask(TokenTask):
    """A task on tokens that is evaluated at other lengths than the one trained on, in test sets "length=N".

    Args:
      length: length trained on; each task defines what its length counts.
      lengths: lengths evaluated at the end (split "test"), besides the one trained on. Other arguments: see
        `TokenTask`.

    Raises:
      TypeError, ValueError: see `TokenTask`.
    """

    length: int
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "lengths", to_sizes("lengths", self.lengths))
        check_sizes(length=self.length)

    def wider_sets(self) -> dict[str, Self]:
        return {f"length={n}": self.with_length(n) for n in dict.fromkeys((self.length, *self.lengths))}

    def with_length(self, length: int) -> Self:
        """Returns this task with sequences of one length."""
        return dataclasses.replace(self, length=length)
