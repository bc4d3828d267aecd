"""Batches of stories of similar length.

A batch is padded to one of a few lengths, with one batch size per length, so that a program compiles for few shapes.

Shape letters: `T` steps, `B` examples, `W` words of a sentence, `N` records of a split.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from mnm_jax.training import Batch
from tasks.babi.cache import Split
from tasks.babi.curriculum import Curriculum, fingerprint
from tasks.babi.layout import EMPTY, Layout

# Readings have rows of sentences and questions: most tasks 3, 6, 10, 12 or 15, at most 75; task 3 up to 135.
_LENGTHS = (3, 6, 10, 15, 20, 32, 48, 75, 105, 135)
# Batch sizes are multiples of this, so that batches divide over devices and into micro-batches.
_SIZE_STEP = 8
_PLAIN = Layout()


def bucket_lengths(longest: int) -> np.ndarray:
    """Returns the lengths `T` that batches are padded to, in rising order; the last one is `longest`.

    Examples:
      >>> bucket_lengths(20)
      array([ 3,  6, 10, 15, 20])
    """
    return np.array([length for length in _LENGTHS if length < longest] + [longest])


def pad_batch(records: Sequence[Mapping[str, Any]], steps: int, batch_size: int, layout: Layout = _PLAIN) -> Batch:
    """Returns records as a batch `[T, B]`, padded to `steps`; missing examples are padding throughout."""

    def join(empty: np.ndarray, *leaves: np.ndarray) -> np.ndarray:
        joined = np.zeros((steps, batch_size, *empty.shape[1:]), empty.dtype)
        for column, leaf in enumerate(leaves):
            joined[: len(leaf), column] = leaf
        return joined

    return jax.tree.map(join, *map(layout.arrange, (EMPTY, *records)))


class Bucket(NamedTuple):
    """Records that are padded to the same length.

    Attributes:
      records: places in the split, `[n]`.
      steps: the length `T` of their batches.
      batch_size: records per batch.
    """

    records: np.ndarray
    steps: int
    batch_size: int


def make_buckets(split: Split, lengths: np.ndarray, batch_size: int, chosen: np.ndarray) -> list[Bucket]:
    """Groups records by length, such that a batch of any group has approximately `batch_size` questions.

    Questions of all tasks then have equal weight, whether a story has one question or ten.

    Args:
      split: the split that the records are from.
      lengths: see `bucket_lengths`.
      batch_size: questions per batch, approximately.
      chosen: places of the records in the split, `[n]`.
    """
    places = np.searchsorted(lengths, split.steps[chosen])
    buckets = []
    for place in np.unique(places):
        records = chosen[places == place]
        size = batch_size / split.questions[records].mean()
        size = max(_SIZE_STEP, round(size / _SIZE_STEP) * _SIZE_STEP)
        buckets.append(Bucket(records=records, steps=int(lengths[place]), batch_size=min(size, len(records))))
    return buckets


def epoch_plan(buckets: Sequence[Bucket], seed: int, epoch: int) -> list[tuple[int, np.ndarray]]:
    """Returns (steps, records) of every batch of one epoch, in random order.

    Records that do not fill a batch are left out; each epoch draws again which ones.
    """
    rng = np.random.default_rng([seed, epoch])
    batches = []
    for records, steps, size in buckets:
        order = rng.permutation(records)[: len(records) // size * size]
        batches += [(steps, ids) for ids in order.reshape(-1, size)]
    return [batches[place] for place in rng.permutation(len(batches))]


class BabiLoader:
    """An endless iterator of training batches, shuffled per epoch, whose position is saved and restored exactly.

    Args:
      split: the training records.
      drawn: places of the records of an epoch in the split, `[n]`; a place may occur several times.
      lengths: see `bucket_lengths`.
      seed: seed of the order, >= 0.
      batch_size: questions per batch, approximately.
      change: `(record, rng) -> record`, applied to every reading each time it is drawn; None: no change.
      part: (index, count): this loader returns one of `count` equal parts of each batch, of neighbouring examples.
      layout: the steps of a record; `split.steps` counts them.
      first: epochs that precede the epochs of `drawn`; None: there are none.

    Raises:
      ValueError: `batch_size` exceeds the number of questions of an epoch, of `drawn` or of `first`.
    """

    def __init__(
        self,
        split: Split,
        drawn: np.ndarray,
        lengths: np.ndarray,
        seed: int,
        batch_size: int,
        change: Callable[[Mapping[str, Any], np.random.Generator], Mapping[str, Any]] | None = None,
        part: tuple[int, int] = (0, 1),
        layout: Layout = _PLAIN,
        first: Curriculum | None = None,
    ):
        questions = int(split.questions[drawn].sum())
        fewest = min(questions, int(split.questions[first.drawn].sum())) if first else questions
        if batch_size > fewest:
            raise ValueError(f"batch_size must be <= {fewest}, the training questions of an epoch, got {batch_size=}.")
        self._records, self._seed, self._change, self._part = split.records, seed, change, part
        self._layout = layout
        self._identity: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "questions": questions}
        self._identity["first_epochs"] = fingerprint(first)
        buckets = make_buckets(split, lengths, batch_size, drawn)
        self.batches = _count_batches(buckets)  # per epoch, after the first epochs
        self._first_epochs, self._first_batches, first_buckets = 0, 0, buckets
        if first is not None:
            first_buckets = make_buckets(split, lengths, batch_size, first.drawn)
            self._first_epochs, self._first_batches = first.epochs, first.epochs * _count_batches(first_buckets)

        # Two plans: the first batches of the next epoch are read ahead while the last ones of this epoch are read.
        @functools.lru_cache(maxsize=2)
        def plan(epoch: int) -> list[tuple[int, np.ndarray]]:
            return epoch_plan(first_buckets if epoch < self._first_epochs else buckets, seed, epoch)

        self._plan = plan
        batches = grain.MapDataset.range(self.batches).repeat().map_with_index(lambda index, _: self._read(index))
        self._iterator = iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))

    def _read(self, index: int) -> Batch:
        """Returns this loader's part of a batch; index: number of the batch since the start."""
        epoch, position = self._place(index)
        steps, chosen = self._plan(epoch)[position]
        # The batch size of a bucket with few records may not be divisible by the devices: add examples of padding.
        which, count = self._part
        step = math.lcm(_SIZE_STEP, count)
        size = -(-len(chosen) // step) * step // count
        own = range(which * size, min((which + 1) * size, len(chosen)))
        records = self._records.__getitems__(chosen[own.start : own.stop].tolist())
        if self._change is not None:
            # NumPy pads seeds with zeros: without the last number, the first of these generators would be the plan's.
            rngs = (np.random.default_rng([self._seed, epoch, position, column, 1]) for column in own)
            records = [self._change(record, rng) for record, rng in zip(records, rngs, strict=True)]
        return pad_batch(records, steps, size, self._layout)

    def _place(self, index: int) -> tuple[int, int]:
        """Returns the epoch of a batch, and its place in the epoch; index: number of the batch since the start."""
        if index < self._first_batches:
            return divmod(index, self._first_batches // self._first_epochs)
        epoch, position = divmod(index - self._first_batches, self.batches)
        return self._first_epochs + epoch, position

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """Returns the position of the next batch; JSON can hold it."""
        return {**self._identity, "position": self._iterator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a position of `get_state`.

        Raises:
          ValueError: the position is from another seed, batch size, number of questions or first epochs.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ValueError(f"the saved loader has {name}={state.get(name)}, this one {name}={value}.")
        self._iterator.set_state(state["position"])


def _count_batches(buckets: Sequence[Bucket]) -> int:
    """Returns the number of batches of an epoch."""
    return sum(len(bucket.records) // bucket.batch_size for bucket in buckets)


def evaluation_batches(
    split: Split, chosen: np.ndarray, lengths: np.ndarray, batch_size: int, layout: Layout = _PLAIN
) -> Iterator[Batch]:
    """Yields batches with each of the `chosen` records once, shortest first; padding completes the last of a length."""
    for records, steps, size in make_buckets(split, lengths, batch_size, chosen):
        for start in range(0, len(records), size):
            ids = records[start : start + size]
            yield pad_batch(split.records.__getitems__(ids.tolist()), steps, size, layout)
