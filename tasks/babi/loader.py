"""Batches of stories of like length.

A batch is padded to one of a few fixed lengths, so that a program compiles for a few shapes only. Shape letters: `T`
steps, `B` examples, `W` words of a sentence, `N` records of a split.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from mnm_jax.training.task import Batch
from tasks.babi.cache import Split
from tasks.babi.encode import WORDS
from tasks.babi.vocabulary import PADDING

# Near the lengths that pad the 20 tasks least (13 steps a question where 10.6 are real) with eight shapes; 71 and 131
# are the longest stories of the protocol and their question.
_LENGTHS = (3, 7, 11, 17, 29, 47, 71, 131)


def bucket_lengths(longest: int) -> np.ndarray:
    """The lengths `T` that batches are padded to, rising; the last is `longest`.

    >>> bucket_lengths(20)
    array([ 3,  7, 11, 17, 20])
    """
    return np.array([length for length in _LENGTHS if length < longest] + [longest])


def pad_batch(records: Sequence[Mapping[str, Any]], steps: int, batch_size: int) -> Batch:
    """`records` side by side, `[T, B]`, padded to `steps`; missing examples are all padding and count nowhere."""
    batch = Batch(
        inputs=np.full((steps, batch_size, WORDS), PADDING, np.int32),
        targets=np.zeros((steps, batch_size), np.int32),
        loss_mask=np.zeros((steps, batch_size), np.float32),
        mask=np.zeros((steps, batch_size), np.bool_),
    )
    for column, record in enumerate(records):
        length = len(record["words"])
        batch.inputs[:length, column] = record["words"]
        batch.targets[length - 1, column] = record["answer"]
        batch.loss_mask[length - 1, column] = 1
        batch.mask[:length, column] = True
    return batch


def epoch_plan(buckets: np.ndarray, seed: int, epoch: int, batch_size: int) -> np.ndarray:
    """The records of every batch of one epoch, int `[N // B, B]`; the `N % B` left out are drawn anew each epoch.

    buckets: `[N]` bucket of each record. Records in random order are sorted by bucket and cut into batches, so at
    most one batch at each boundary mixes two buckets; then the batches are put in random order.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(buckets))[: len(buckets) // batch_size * batch_size]
    order = order[np.argsort(buckets[order], kind="stable")]
    batches = order.reshape(-1, batch_size)
    return batches[rng.permutation(len(batches))]


class BabiLoader:
    """Endless training batches, shuffled each epoch; the position can be saved and restored exactly.

    split: the training records; lengths: see `bucket_lengths`.

    Raises:
        ValueError: `batch_size` exceeds the number of records.
    """

    def __init__(self, split: Split, lengths: np.ndarray, seed: int, batch_size: int):
        if batch_size > len(split.steps):
            raise ValueError(f"batch_size must be <= {len(split.steps)}, the training questions, got {batch_size=}.")
        self._records, self._lengths, self._batch_size = split.records, lengths, batch_size
        self._identity = {"seed": seed, "batch_size": batch_size, "questions": len(split.steps)}
        self._buckets = np.searchsorted(lengths, split.steps)
        self._batches = len(split.steps) // batch_size
        # Two: a batch of the next epoch is read ahead while the last ones of this epoch are still being read.
        self._plan = functools.lru_cache(maxsize=2)(lambda epoch: epoch_plan(self._buckets, seed, epoch, batch_size))
        batches = grain.MapDataset.range(self._batches).repeat().map_with_index(lambda index, _: self._read(index))
        self._iterator = iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))

    def _read(self, index: int) -> Batch:
        epoch, position = divmod(index, self._batches)
        chosen = self._plan(epoch)[position]
        steps = int(self._lengths[self._buckets[chosen].max()])
        return pad_batch(self._records.__getitems__(chosen.tolist()), steps, self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position of the next batch, JSON-serialisable."""
        return {**self._identity, "position": self._iterator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `get_state` was called.

        Raises:
            ValueError: the state belongs to another seed, batch size or number of questions.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ValueError(f"the saved loader has {name}={state.get(name)}, this one {name}={value}.")
        self._iterator.set_state(state["position"])


def evaluation_batches(split: Split, chosen: np.ndarray, lengths: np.ndarray, batch_size: int) -> Iterator[Batch]:
    """The `chosen` records once each, shortest first; the last batch is filled up with examples that do not count."""
    order = chosen[np.argsort(split.steps[chosen], kind="stable")]
    for start in range(0, len(order), batch_size):
        ids = order[start : start + batch_size]
        steps = int(lengths[np.searchsorted(lengths, split.steps[ids].max())])
        yield pad_batch(split.records.__getitems__(ids.tolist()), steps, batch_size)
