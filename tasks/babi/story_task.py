"""The common parts of the tasks on bAbI: the data set, the features of its sentences, and the loss."""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from flax import nnx

from mnm_jax._checks import check_choice, check_not_negative, check_sizes
from mnm_jax.training import Batch, Mean
from tasks.arguments import unwrap_numbers
from tasks.babi.archive import SIZES
from tasks.babi.cache import Dataset, Options, open_dataset
from tasks.babi.curriculum import Curriculum
from tasks.babi.encoder import SentenceEncoder
from tasks.babi.parser import Words
from tasks.babi.vocabulary import PADDING
from tasks.scoring import cross_entropy

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoryTask:
    """A task on the stories of bAbI, the base of `Babi` and `BabiStream`.

    Args:
      tasks: numbers of the chosen tasks, 1 to 20.
      data_dir: folder that holds the official `tasks_1-20_v1-2.tar.gz` or the folder that it unpacks to; "": the
        environment variable MNM_BABI_DIR.
      size: training questions per task, "1k" or "10k".
      embedding_features: features of a sentence vector.
      hidden_features: hidden units of the encoder; 0: none.
      entities: words that the encoder picks from each sentence; `ChainCell` needs them.
      entity_features: features of an entity's code.
      position_deviation: deviation of the encoder's initial position vectors around 1; see `SentenceEncoder`.
      first_tasks: tasks of the first `first_epochs` epochs, each story drawn once per epoch; () for none.
      first_epochs: number of epochs that draw from `first_tasks` only; 0 for none.
      cache_dir: folder of the encoded stories; made when first needed.

    Raises:
      TypeError, ValueError: a field of another type or out of range.
    """

    tasks: tuple[int, ...]
    data_dir: str = ""
    size: Literal["1k", "10k"] = "10k"
    embedding_features: int = 64
    hidden_features: int = 0
    entities: int = 0
    entity_features: int = 48
    position_deviation: float = 0.1
    first_tasks: tuple[int, ...] = ()
    first_epochs: int = 0
    cache_dir: str = "~/.cache/mnm_jax"

    sample: ClassVar[None] = None

    def __post_init__(self) -> None:
        unwrap_numbers(self)
        if not isinstance(self.tasks, tuple | list) or not self.tasks:
            raise ValueError(f"tasks must be a tuple of task numbers such as (1, 2), got {self.tasks!r}.")
        for number in self.tasks:
            if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 20:
                raise ValueError(f"tasks must be numbers from 1 to 20, got {number!r} in {self.tasks!r}.")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks must name each task once, got {self.tasks!r}.")
        object.__setattr__(self, "tasks", tuple(sorted(self.tasks)))
        check_choice("size", self.size, SIZES)
        for name in ("data_dir", "cache_dir"):
            if not isinstance(getattr(self, name), str | os.PathLike):
                raise TypeError(f"{name} must be the path of a folder, got {getattr(self, name)!r}.")
        check_sizes(embedding_features=self.embedding_features, entity_features=self.entity_features)
        check_sizes(least=0, hidden_features=self.hidden_features, entities=self.entities)
        check_not_negative(position_deviation=self.position_deviation)
        check_sizes(least=0, first_epochs=self.first_epochs)
        self._check_chosen("first_tasks")
        if bool(self.first_tasks) != bool(self.first_epochs):
            raise ValueError(
                f"first_tasks and first_epochs belong together, got {self.first_tasks} and {self.first_epochs}: set "
                "both, or leave both out."
            )

    def _check_chosen(self, name: str) -> None:
        """Sorts a field that names tasks, and raises ValueError if one of them is not among `tasks`."""
        named = getattr(self, name)
        numbers = {str(number) for number in self.tasks}  # as text, since True and 1.0 equal 1
        if not isinstance(named, tuple | list) or not set(map(str, named)) <= numbers:
            raise ValueError(f"{name} must be a tuple of chosen tasks, {self.tasks}, got {named!r}.")
        object.__setattr__(self, name, tuple(sorted(named)))

    def _curriculum(self, tasks: np.ndarray) -> Curriculum | None:
        """Returns the records of the first epochs, given the task of each record, `[n]`."""
        if not self.first_epochs:
            return None
        return Curriculum(np.flatnonzero(np.isin(tasks, self.first_tasks)), self.first_epochs)

    @property
    def input_features(self) -> int:
        """`D`: the features of a sentence vector, and the codes of its entities."""
        return self.embedding_features + self.entities * self.entity_features

    @property
    def entity_shape(self) -> tuple[int, int]:
        """`(P, V)`: number of entities at the end of the features of a step, and features of each."""
        return self.entities, self.entity_features

    def loss(self, logits: Array, batch: Batch) -> Mean:
        """Returns the cross entropy in nats per step that the loss mask selects; logits `[T, B, C]`."""
        return cross_entropy(logits, batch)

    def _open(self, **options: Any) -> Dataset:
        """Returns the data set, encoded with these further `Options`."""
        return open_dataset(self.data_dir, self.cache_dir, Options(tasks=self.tasks, size=self.size, **options))

    @functools.cached_property
    def _dataset(self) -> Dataset:
        """The data set as the task reads it."""
        raise NotImplementedError

    def training_rows(self, stories: int) -> Iterator[tuple[int, Words]]:
        """Yields task and words of each row of the first `stories` training stories of every task."""
        words, split = self._dataset.vocabulary.words, self._dataset.splits["train"]
        for task in self.tasks:
            for record in split.records.__getitems__(np.flatnonzero(split.tasks == task)[:stories].tolist()):
                for row in record["words"]:
                    yield task, tuple(words[word - 1] for word in row if word != PADDING)

    def _encoder(self, counts: np.ndarray, words: int, rngs: nnx.Rngs) -> SentenceEncoder:
        """Returns the encoder of sentences of up to `words` words, which occur `counts` times in training."""
        return SentenceEncoder(
            counts,
            sentence_words=words,
            features=self.embedding_features,
            hidden=self.hidden_features,
            entities=self.entities,
            entity_features=self.entity_features,
            position_deviation=self.position_deviation,
            rngs=rngs,
        )
