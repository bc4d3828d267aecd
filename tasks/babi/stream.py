"""catbAbI: the stories of bAbI as endless streams of words, in which a model answers from all that it has read.

Shape letters: `T` steps of a window, `B` streams, `D` features, `C` word ids.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import jax
import numpy as np
from flax import nnx

from mnm_jax._checks import check_choice, check_sizes
from mnm_jax.training import Batch, Loader, Mean
from tasks.babi.cache import Dataset
from tasks.babi.encode import encode_rows
from tasks.babi.encoder import SentenceEncoder
from tasks.babi.samples import (
    END,
    MARK,
    SENTENCE_WORDS,
    STOP,
    Samples,
    StreamLoader,
    Window,
    finite_windows,
    make_samples,
    stream_vocabulary,
)
from tasks.babi.story_task import StoryTask
from tasks.babi.vocabulary import PADDING, Vocabulary
from tasks.scoring import accuracy_and_error

Array = jax.Array

MODES = ("question", "language")
READS = ("word", "sentence")
CONTROLLERS = ("stream", "sentence")
_WHOLE = 10**6  # sentences that a question sees: all
_EVALUATION_SEED = 2**31  # larger than the seed of any run
_ASKED, _WORD = 0, 1  # columns of the inputs


class StreamEncoder(nnx.Module):
    """Encodes the words of a stream; the model does not see the number of the task.

    Args:
      sentences: the encoder of the last columns of the inputs.
      columns: number of columns that it reads.
    """

    def __init__(self, sentences: SentenceEncoder, columns: int):
        self.sentences = sentences
        self.columns = columns

    def __call__(self, inputs: Array) -> Array:
        """Returns features `[T, B, D]` for inputs `[T, B, ...]`."""
        return self.sentences(inputs[..., -self.columns :])


@dataclasses.dataclass(frozen=True, kw_only=True)
class BabiStream(StoryTask):
    r"""catbAbI: bAbI stories, joined at random into endless streams of words, by the protocol of Schlag et al. (2021).

    Sequence: one word per step. A sample is a story with all its questions in place; "." and "?" are words, and the
    answer follows the "?" (a list such as "n,w" is one word). Words are lower-cased. Every sample is preceded by the
    word "<end>", which is also the last target of the sample before it. A model reads `B` streams in parallel, in
    windows of `window` words. Its carry, with the memory, is passed from window to window, also within and between
    stories, and is never reset; the gradient ends at the border of a window (`carries`, see `mnm_jax.training.Task`).
    The first `first_epochs` epochs have only samples of `first_tasks`.

    The target of every step is the next word, among all words. In the mode "question" only the steps at a "?" count, so
    the target is the answer; in the mode "language" all steps count. In both modes accuracy is the share of right
    answers at a "?", for all questions together and per task ("task=N/accuracy").

    Meta-training: the training samples of all chosen tasks, in a new random order per epoch, dealt out to the streams
    in turn. Every tenth story of each training file is held out for validation (the archive's own `en-valid-10k` of
    the protocol is not used). Validation reads all held-out samples in `batch_size` streams, the test all test samples
    as one stream; each in one fixed random order.

    Inputs `[T, B, 2]`: the number of the task at a "?" and else 0, which only the metrics use, and the id of the word.
    With `reads="sentence"` the inputs also have the words of the sentence up to this one (`[T, B, 14]`), and the model
    gets the vector and the entities of this part of a sentence at every step; `ChainCell` needs them. The protocol has
    "word".

    With `controller="sentence"` the cell's controller is reset before the first word of every sentence and question,
    before an answer and before "<end>" (`Batch.reset_controller`), so that facts reach an answer through the memory
    alone; this needs a cell with a neural memory. Neither this reset nor `first_tasks` is part of the
    protocol.

    Differences to the published program: validation begins with an empty memory (there with the state of a training
    stream), and the parameters after the last update are tested (there those with the least validation loss). Since
    every update continues from a carry, which is a constant, the memory's initial weights are never trained: they keep
    their random draw, which weight decay shrinks.

    Chance: as in `Babi`. Oracle: the stories determine every answer; tests/tasks/test_babi_stream.py.

    The files are read when first needed, with the packages of `pip install mnm_jax[data]`.

    Args:
      window: `T`, words between two truncations of the gradient.
      mode: "question" or "language": which steps count.
      reads: "word" or "sentence": the words that a step's features are computed from.
      controller: "stream" or "sentence": where the cell's controller is reset; "stream": nowhere.
        Other arguments: see `tasks.babi.story_task.StoryTask`; entities need `reads="sentence"`.

    Raises:
      TypeError, ValueError: an argument of another type or out of range, or damaged files.
      FileNotFoundError: no data in `data_dir`; the message names the page that has the archive.

    Examples:
      A data set of one task, written here in the layout of the official archive:

      >>> import pathlib, tempfile
      >>> temporary = tempfile.TemporaryDirectory()
      >>> folder = pathlib.Path(temporary.name, "tasks_1-20_v1-2", "en")
      >>> folder.mkdir(parents=True)
      >>> story = b"1 Mary moved to the bathroom.\n2 Where is Mary?\tbathroom\t1\n"
      >>> for split in ("train", "test"):
      ...     _ = (folder / f"qa1_example_{split}.txt").write_bytes(10 * story)
      >>> task = BabiStream(tasks=(1,), size="1k", window=13, data_dir=temporary.name, cache_dir=temporary.name)
      >>> batch = next(task.loader(0, 2))
      >>> batch.inputs.shape, task.output_features
      ((13, 2, 2), 11)
      >>> print(task.render(batch, 0))
      <end>
      mary moved to the bathroom .
      where is mary ? bathroom
      = bathroom
      <end>
      (1 answer, 13 words)
      >>> temporary.cleanup()

    References:
      Schlag, Munkhdalai and Schmidhuber, Learning Associative Inference Using Fast Weight Memory, ICLR 2021: the
      protocol. Weston et al., Towards AI-Complete Question Answering, 2015: the data.
    """

    tasks: tuple[int, ...] = tuple(range(1, 21))
    window: int = 200
    mode: Literal["question", "language"] = "question"
    reads: Literal["word", "sentence"] = "word"
    controller: Literal["stream", "sentence"] = "stream"

    name: ClassVar[str] = "catbabi"
    carries: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(window=self.window)
        check_choice("mode", self.mode, MODES)
        check_choice("reads", self.reads, READS)
        check_choice("controller", self.controller, CONTROLLERS)
        if self.entities and self.reads == "word":
            raise ValueError(
                f"entities are picked from a sentence: set reads='sentence', got entities={self.entities}."
            )

    @functools.cached_property
    def _dataset(self) -> Dataset:
        return self._open(max_sentences=_WHOLE, max_sentences_task3=_WHOLE)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of a stream, and those that are answers; reads the data."""
        return stream_vocabulary(self._dataset.vocabulary)

    def use_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Sets the vocabulary to that of a trained model, so that the model can be used without the data set."""
        self.__dict__.update(vocabulary=vocabulary, _counts=np.ones(vocabulary.size))

    def encode(self, words: Sequence[str], mark: str = "") -> np.ndarray:
        """Returns the inputs of the steps of one sentence, `[T, ...]`: its words, and its "." or "?" if given.

        Raises:
          ValueError: the sentence is empty or too long, or has a word that is not in the vocabulary.
        """
        ids = self.vocabulary.word_ids()
        (row,) = encode_rows([words], ids, "the line")
        row = np.append(row[: len(words)], np.array([ids[mark]] if mark else [], np.int32))
        inputs = np.zeros((len(row), self._columns), np.int32)
        inputs[:, _WORD] = row
        if self.reads == "sentence":
            inputs[:, _WORD + 1 :][:, : len(row)] = np.tril(np.broadcast_to(row, (len(row), len(row))))
        return inputs

    @property
    def _columns(self) -> int:
        """Number of columns of the inputs."""
        return 2 + (SENTENCE_WORDS if self.reads == "sentence" else 0)

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        """Number of times that each word id occurs in the training samples."""
        return np.bincount(self._samples("train").words, minlength=self.vocabulary.size)

    @functools.cached_property
    def _read(self) -> dict[str, Samples]:
        return {}

    def _samples(self, split: str) -> Samples:
        """Returns the samples of a split, read once."""
        if split not in self._dataset.splits:
            raise ValueError(f"tasks {self.tasks} have no validation: a file needs 10 stories or more.")
        if split not in self._read:
            self._read[split] = make_samples(self._dataset.splits[split], self._dataset.vocabulary, self.vocabulary)
        return self._read[split]

    def _batch(self, samples: Samples, window: Window) -> Batch:
        """Returns a window as a batch."""
        indices, mask = window
        asked = np.where(mask, samples.asked[indices], 0)
        columns = [asked[..., None], samples.words[indices][..., None]]
        if self.reads == "sentence":
            columns.append(samples.sentences(indices))
        counted = mask if self.mode == "language" else asked > 0
        return Batch(
            inputs=np.where(mask[..., None], np.concatenate(columns, -1), PADDING).astype(np.int32),
            targets=np.where(counted, samples.next_words[indices], PADDING).astype(np.int32),
            loss_mask=counted.astype(np.float32),
            mask=mask,
            reset_controller=mask & (samples.places[indices] == 0) if self.controller == "sentence" else None,
        )

    @property
    def output_features(self) -> int:
        """`C`, the number of word ids; reads the data."""
        return self.vocabulary.size

    def loader(self, seed: int, batch_size: int, part: tuple[int, int] = (0, 1)) -> Loader:
        """Returns an endless iterator of windows `[T, B]` of `B = batch_size` streams; equal seeds give equal bytes.

        Args:
          seed: seed of the order of the samples, >= 0.
          batch_size: number of streams.
          part: (index, count): this process reads one of `count` equal parts of the streams.
        """
        check_sizes(least=0, seed=seed)
        check_sizes(batch_size=batch_size)
        samples = self._samples("train")
        make_batch = functools.partial(self._batch, samples)
        # A sample without a question belongs to no task; the archive has none.
        first = self._curriculum(np.maximum.reduceat(samples.asked, samples.starts[:-1]))
        return StreamLoader(samples, make_batch, self.window, int(seed), int(batch_size), part, first)

    def encoder(self, rngs: nnx.Rngs) -> StreamEncoder:
        """Returns a module from inputs `[T, B, ...]` to features `[T, B, D]`."""
        columns = SENTENCE_WORDS if self.reads == "sentence" else 1
        return StreamEncoder(self._encoder(self._counts, columns, rngs), columns)

    def evaluations(self, split: str, batch_size: int) -> Mapping[str, Callable[[], Iterable[Batch]]]:
        """Returns one set, "", with each question of "valid" (`batch_size` streams) or "test" (one stream) once.

        Raises:
          ValueError: another split, or training files too short to hold a story out.
        """
        check_choice("split", split, ("valid", "test"))
        check_sizes(batch_size=batch_size)
        samples = self._samples(split)
        count = len(samples.starts) - 1
        streams = 1 if split == "test" else min(int(batch_size), count)
        order = np.random.default_rng(_EVALUATION_SEED).permutation(count)

        def batches() -> Iterator[Batch]:
            return (self._batch(samples, part) for part in finite_windows(samples, order, self.window, streams))

        return {"": batches}

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """Returns "accuracy" and "error" of the answers, and of each task if there are several; logits `[T, B, C]`."""
        asked = batch.inputs[..., _ASKED]
        sets = {"": asked > 0}
        if len(self.tasks) > 1:
            sets |= {f"task={task}/": asked == task for task in self.tasks}
        return {
            f"{name}{metric}": mean
            for name, chosen in sets.items()
            for metric, mean in accuracy_and_error(logits, _only(batch, chosen)).items()
        }

    def tokens(self, batch: Batch, index: int) -> list[str]:
        """Returns the words of stream `index`."""
        words = np.asarray(batch.inputs)[np.asarray(batch.mask)[:, index], index, _WORD]
        return [self.vocabulary.words[word - 1] for word in words]

    def render(self, batch: Batch, index: int) -> str:
        """Returns the words of stream `index`, one sentence per line, and below a question "=" and its answer."""
        lines: list[str] = []
        line: list[str] = []
        expected: list[str] = []
        targets, asked = np.asarray(batch.targets)[:, index], np.asarray(batch.inputs)[:, index, _ASKED]
        words = self.tokens(batch, index)
        for step, word in enumerate(words):
            line.append(word)
            if asked[step]:
                expected.append(f"= {self.vocabulary.words[targets[step] - 1]}")
            if step + 1 == len(words) or word in (STOP, END) or (expected and word != MARK):
                lines += [" ".join(line), *expected]
                line, expected = [], []
        answers = int(np.sum(asked > 0))
        return "\n".join([*lines, f"({answers} answer{'s' * (answers != 1)}, {len(words)} words)"])


def _only(batch: Batch, chosen: Array) -> Batch:
    """Returns the batch with a loss mask of only the chosen steps, `[T, B]` bool."""
    return batch._replace(loss_mask=batch.loss_mask * chosen.astype(batch.loss_mask.dtype))
