"""Common parts of the tasks on tokens: embedding, lengths and score.

Shape letters: `T` time steps, `B` examples, `D` input features, `C` classes.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax._checks import check_sizes
from mnm_jax.training import Batch, Mean
from tasks.arguments import to_sizes
from tasks.sampling import DrawnTask
from tasks.scoring import accuracy, cross_entropy

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
class TokenTask(DrawnTask):
    """A task whose inputs are tokens and whose answers are classes.

    Meta-training: every sequence is a new draw. One update minimises the cross entropy (nats) of the answers over a
    batch of such sequences. With a curriculum the size of the sequences grows linearly over the first `curriculum`
    updates.

    Metrics: accuracy, the fraction of right answers; chance, one over the number of classes. Oracle: the answers follow
    from the tokens; tests/tasks/test_league.py derives them. Evaluation draws its sequences with random keys that
    training does not use.

    A subclass defines `name`, `tokens_known`, `output_features`, `draw` and `token`; see `SelectiveCopy`.

    Args:
      embedding_features: `D`, features of the learned embedding of a token.
        Other arguments: see `DrawnTask`.

    Raises:
      TypeError: an argument that is not a whole number, or sizes that are no tuple.
      ValueError: a number below 1 (below 0 for the curriculum).
    """

    embedding_features: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(embedding_features=self.embedding_features)

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

    def answer(self, target: Any) -> str:
        """Returns the class of one step as text."""
        return str(target)

    def encoder(self, rngs: nnx.Rngs) -> Callable[[Array], Array]:
        """Returns a learned embedding."""
        return nnx.Embed(self.tokens_known, self.embedding_features, rngs=rngs)

    def to_batch(self, drawn: TokenSequence) -> Batch:
        """Returns sequences `[T, B]` as a batch."""
        targets = jnp.where(drawn.loss_mask, drawn.targets, 0)
        loss_mask = drawn.loss_mask.astype(jnp.float32)
        return Batch(inputs=drawn.tokens, targets=targets, loss_mask=loss_mask, mask=drawn.mask)

    def loss(self, logits: Array, batch: Batch) -> Mean:
        """Returns the cross entropy in nats per answer; logits `[T, B, C]`."""
        return cross_entropy(logits, batch)

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """Returns "accuracy", and "chance", which is 1 / C."""
        right = accuracy(logits, batch)
        return {"accuracy": right, "chance": Mean(total=right.count / self.output_features, count=right.count)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthTask(TokenTask):
    """A task on tokens that is evaluated at other lengths than the one trained on, in test sets "length=N".

    Args:
      length: length trained on; each task defines what its length counts.
      lengths: lengths evaluated at the end (split "test"), besides the one trained on.
        Other arguments: see `TokenTask`.

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
