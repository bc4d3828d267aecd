"""Stories with their questions as sequences of words, and endless streams of them.

Shape letters: `N` words of a split, `n` samples, `T` steps of a window, `B` streams.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mnm_jax.training import Batch
from tasks.babi.cache import Split
from tasks.babi.curriculum import Curriculum, fingerprint
from tasks.babi.encode import WORDS
from tasks.babi.vocabulary import PADDING, Vocabulary

STOP, MARK, END = ".", "?", "<end>"
SENTENCE_WORDS = WORDS + 1  # with the stop or the question mark


class Samples(NamedTuple):
    """The samples of a split, one after another; a sample is a story with its questions, after an `END`.

    Attributes:
      words: id of each word, `[N]`.
      next_words: id of the word after it, `[N]`; after a sample's last word comes the `END` of another sample.
      places: place of each word in its sentence or question, `[N]`; 0 for an answer and an `END`.
      asked: the number of the task at each question mark, else 0, `[N]`.
      starts: index of the first word of each sample, and N, `[n + 1]`.
    """

    words: np.ndarray
    next_words: np.ndarray
    places: np.ndarray
    asked: np.ndarray
    starts: np.ndarray

    def indices(self, chosen: np.ndarray) -> np.ndarray:
        """Returns the index of every word of the chosen samples, in their order."""
        first = self.starts[chosen]
        lengths = self.starts[chosen + 1] - first
        before = np.cumsum(lengths) - lengths
        return np.repeat(first - before, lengths) + np.arange(lengths.sum())

    def sentences(self, indices: np.ndarray) -> np.ndarray:
        """Returns the words from the start of the sentence to each of the given words, `[..., SENTENCE_WORDS]`."""
        place = self.places[indices][..., None]
        offsets = np.arange(SENTENCE_WORDS)
        words = self.words[np.minimum(indices[..., None] - place + offsets, len(self.words) - 1)]
        return np.where(offsets <= place, words, PADDING)


def stream_vocabulary(vocabulary: Vocabulary) -> Vocabulary:
    """Returns the vocabulary of a stream: words, answers, which are words too, and the three marks.

    Examples:
      >>> stream_vocabulary(Vocabulary(words=("left", "mary", "who"), answers=("mary", "a,b"))).words
      ('.', '<end>', '?', 'a,b', 'left', 'mary', 'who')
    """
    words = {*vocabulary.words, *vocabulary.answers, STOP, MARK, END}
    return Vocabulary(words=tuple(sorted(words)), answers=vocabulary.answers)


def make_samples(split: Split, rows: Vocabulary, stream: Vocabulary) -> Samples:
    """Returns the samples of a split of readings.

    Args:
      split: readings that are whole stories.
      rows: vocabulary of the readings.
      stream: vocabulary of the stream, from `stream_vocabulary`.
    """
    records = split.records.__getitems__(list(range(len(split.steps))))
    ids = stream.word_ids()
    of_word = np.array([PADDING, *(ids[word] for word in rows.words)])
    of_answer = np.array([*(ids[answer] for answer in rows.answers), PADDING])  # index -1, no answer, is the last one
    answers = np.concatenate([record["answers"] for record in records])
    first = np.cumsum(split.steps) - split.steps
    # A row: the `END` before a sample, the words of a sentence, its stop or question mark, an answer; else padding.
    table = np.full((len(answers), WORDS + 3), PADDING, np.int32)
    table[first, 0] = ids[END]
    table[:, 1:-2] = of_word[np.concatenate([record["words"] for record in records])]
    table[:, -2] = np.where(answers < 0, ids[STOP], ids[MARK])
    table[:, -1] = of_answer[answers]
    kept = table != PADDING
    places = np.zeros_like(table)
    places[:, 1:-1] = np.cumsum(kept[:, 1:-1], axis=1) - 1
    asked = np.zeros_like(table)
    asked[:, -2] = np.where(answers < 0, 0, np.repeat(split.tasks, split.steps))
    words = table[kept]
    starts = np.flatnonzero(words == ids[END])
    return Samples(
        words=words,
        next_words=np.append(words[1:], np.int32(ids[END])),
        places=places[kept],
        asked=asked[kept],
        starts=np.append(starts, len(words)),
    )


class Window(NamedTuple):
    """A window of streams.

    Attributes:
      indices: index into the samples of each word, `[T, B]`; 0 where a stream has ended.
      mask: `[T, B]` bool, False where a stream has ended.
    """

    indices: np.ndarray
    mask: np.ndarray


class StreamLoader:
    """Endless windows of streams of samples, whose position is saved and restored exactly.

    Every epoch has a new random order of its samples. The samples of all epochs, one epoch after another, are dealt out
    to the streams in turn, so that a stream depends only on the seed, the number of streams and its own number.

    Args:
      samples: the training samples.
      make_batch: maps a `Window` to a batch.
      window: `T`.
      seed: seed of the orders, >= 0.
      streams: `B`, over all parts.
      part: (index, count): this loader returns one of `count` equal parts of the streams, of neighbouring ones.
      first: epochs that precede the epochs of all samples; None: there are none.
    """

    def __init__(
        self,
        samples: Samples,
        make_batch: Callable[[Window], Batch],
        window: int,
        seed: int,
        streams: int,
        part: tuple[int, int] = (0, 1),
        first: Curriculum | None = None,
    ):
        size = streams // part[1]
        self._samples, self._make_batch, self._window, self._streams = samples, make_batch, window, streams
        self._own = range(part[0] * size, (part[0] + 1) * size)
        self._identity: dict[str, Any] = {"seed": seed, "streams": streams, "window": window}
        self._identity |= {"words": len(samples.words), "first_epochs": fingerprint(first)}
        every = np.arange(len(samples.starts) - 1)
        first = first or Curriculum(drawn=every, epochs=0)

        @functools.lru_cache(maxsize=2)
        def order(epoch: int) -> np.ndarray:
            return np.random.default_rng([seed, epoch]).permutation(first.drawn if epoch < first.epochs else every)

        self._order, self._first, self._count = order, first, len(every)
        self._seek(0)

    def _dealt(self, epoch: int) -> int:
        """Returns the number of samples that are dealt out before an epoch."""
        short = min(epoch, self._first.epochs)
        return short * len(self._first.drawn) + (epoch - short) * self._count

    def _share(self, epoch: int, stream: int) -> np.ndarray:
        """Returns the samples of a stream in an epoch: every B-th sample, counted from the first epoch."""
        return self._order(epoch)[(stream - self._dealt(epoch)) % self._streams :: self._streams]

    def _seek(self, position: int) -> None:
        """Moves to a window, given its number since the start."""
        self._position = position
        # Per stream: the next epoch, and the indices of the words that are left of the epochs before it.
        self._epochs: dict[int, int] = {}
        self._rest: dict[int, np.ndarray] = {}
        skip = dict.fromkeys(self._own, position * self._window)
        for epoch in itertools.count():
            if not skip:
                return
            for stream in list(skip):
                share = self._share(epoch, stream)
                words = int((self._samples.starts[share + 1] - self._samples.starts[share]).sum())
                if words > skip[stream]:
                    self._epochs[stream] = epoch + 1
                    self._rest[stream] = self._samples.indices(share)[skip.pop(stream) :]
                else:
                    skip[stream] -= words

    def _take(self, stream: int) -> np.ndarray:
        """Returns the indices of a stream's next words, `[T]`."""
        rest = self._rest[stream]
        while len(rest) < self._window:
            rest = np.append(rest, self._samples.indices(self._share(self._epochs[stream], stream)))
            self._epochs[stream] += 1
        self._rest[stream] = rest[self._window :]
        return rest[: self._window]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        indices = np.stack([self._take(stream) for stream in self._own], 1)
        self._position += 1
        return self._make_batch(Window(indices, np.ones(indices.shape, np.bool_)))

    def get_state(self) -> dict[str, Any]:
        """Returns the position of the next window; JSON can hold it."""
        return {**self._identity, "position": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a position of `get_state`.

        Raises:
          ValueError: the position is from other streams.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ValueError(
                    f"the saved loader has {name}={state.get(name)}, this one {name}={value}: resume with the data and "
                    "the settings of the saved run."
                )
        self._seek(state["position"])


def finite_windows(samples: Samples, order: np.ndarray | Sequence[int], window: int, streams: int) -> Iterator[Window]:
    """Yields the windows of streams, to which each sample is dealt out once, in turn; shorter streams end earlier."""
    shares = [samples.indices(np.asarray(order)[stream::streams]) for stream in range(streams)]
    for start in range(0, max(map(len, shares)), window):
        indices = np.zeros((window, streams), np.int64)
        mask = np.zeros(indices.shape, np.bool_)
        for stream, share in enumerate(shares):
            part = share[start : start + window]
            indices[: len(part), stream], mask[: len(part), stream] = part, True
        yield Window(indices, mask)
