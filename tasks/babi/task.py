"""bAbI question answering as a task.

Shape letters: `T` steps, `B` examples, `W` words of a sentence, `D` features, `C` answers.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import jax
import numpy as np
from flax import nnx

from mnm_jax._checks import check_choice, check_flags, check_sizes
from mnm_jax.training import Batch, Loader, Mean
from tasks.babi.cache import Dataset, Split
from tasks.babi.encode import WORDS, encode_rows
from tasks.babi.encoder import SentenceEncoder
from tasks.babi.layout import CONTROLLERS, Layout
from tasks.babi.story_task import StoryTask
from tasks.babi.symmetry import Renaming
from tasks.babi.vocabulary import PADDING, Vocabulary
from tasks.scoring import accuracy_and_error

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Babi(StoryTask):
    r"""The 20 bAbI tasks, any set of them trained jointly, by the protocol of TPR-RNN and STM.

    Sequence: a story, one sentence per step, with each question at the place where it is asked. Words are lower-cased;
    `SentenceEncoder` maps a sentence or a question to a vector. Without think steps the model answers at the question's
    step; only these steps count. Each question is on a fork of the carry (`Batch.fork`), so it sees the sentences
    before it and no other question, as in a sequence of its own. A question sees the last 70 sentences before it, in
    task 3 the last 130. An answer is one class; a list of answers is one class too. All 20 tasks have 145 words and 60
    answers.

    Meta-training: the task distribution is the training stories of the chosen tasks; an epoch draws each once, or
    several times if its task is `oversampled`. The first `first_epochs` epochs draw only stories of `first_tasks`: a
    curriculum for tasks that are learned late when all tasks are trained together. A batch holds stories of similar
    length with about `batch_size` questions; each story starts with an empty memory. One update minimises the cross
    entropy (nats) of the answers. Every tenth story of each training file is held out for validation; the 1,000 test
    questions per task are for the final numbers (of four trials they were read earlier, see `docs/results/babi.md`).

    With `think_steps` a question is followed by that many steps without words. The model answers in the last of them;
    then, unless `apart`, the memory is again as before the question (`Batch.fork_memory`). With `controller="sentence"`
    the cell's controller is reset at every sentence and at every question (`Batch.reset_controller`), but not at a
    think step, so that facts reach an answer through the memory alone; this needs a cell with a neural memory. The
    reset also discards what the cell has read at a sentence, if it reads after its write. With `sentence_think_steps` a
    sentence is followed by think steps too, in which the cell can write something that depends on this read. With think
    steps and `controller="story"` the controller carries each question over to the sentences and questions after it,
    unless `apart`.

    With `apart` every question is a sequence of its own, as in TPR-RNN and STM: its sentences, the question, and the
    think steps, which read what the question and the think steps before them have written. This takes about twice as
    many steps, and batches mix more tasks.

    Metrics: accuracy, and error = 1 - accuracy; evaluation sets for all chosen tasks together ("") and for each
    ("task=N"). A task fails above 5% error. Chance: one over the number of plausible answers, which differs by task (6
    rooms in task 1, yes and no in task 6). Oracle: the stories determine every answer; tests/tasks/test_babi_task.py
    solves task 1.

    The files are read when first needed, with the packages of `pip install mnm_jax[data]`.

    This project's results on size "10k" were trained on a copy of the archive that differs in one file; they are
    reported with the words "qa3 train = 1,925 genuine + 8,075 simulated questions".

    Args:
      max_sentences: sentences that a question sees, in all tasks except 3.
      max_sentences_task3: sentences that a question sees in task 3.
      renaming: renames people, places and things of each training story, each time it is drawn; see
        `tasks.babi.symmetry`.
      think_steps: steps between a question and its answer.
      sentence_think_steps: steps without words after each sentence.
      controller: "story" or "sentence": where the cell's controller is reset.
      apart: whether every question is a sequence of its own, instead of on a fork in the middle of its story.
      oversampled: tasks whose training stories are drawn more often: once more per epoch for each time that a task is
        named; it has no effect in the first epochs.
        Other arguments: see `tasks.babi.story_task.StoryTask`.

    Raises:
      TypeError, ValueError: an argument of another type or out of range, or damaged files.
      FileNotFoundError: no data in `data_dir`; the message names the page that has the archive.

    Examples:
      A data set of one task, written here in the layout of the official archive:

      >>> import pathlib, tempfile
      >>> temporary = tempfile.TemporaryDirectory()
      >>> folder = pathlib.Path(temporary.name, "tasks_1-20_v1-2", "en")
      >>> folder.mkdir(parents=True)
      >>> story = b"1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary?\tbathroom\t1\n"
      >>> for split in ("train", "test"):
      ...     _ = (folder / f"qa1_example_{split}.txt").write_bytes(10 * story)
      >>> task = Babi(tasks=(1,), size="1k", data_dir=temporary.name, cache_dir=temporary.name)
      >>> batch = next(iter(task.evaluations("test", 8)[""]()))
      >>> batch.inputs.shape, task.answers
      ((3, 8, 11), ('bathroom',))
      >>> print(task.render(batch, 0))
      1 mary moved to the bathroom
      2 john went to the hallway
      ? where is mary
      = bathroom
      >>> temporary.cleanup()

    References:
      Weston et al., Towards AI-Complete Question Answering, 2015: the data. Munkhdalai et al., Metalearned Neural
      Memory, NeurIPS 2019, section 4.2. Schlag and Schmidhuber, TPR-RNN, NeurIPS 2018, and Le et al., STM, ICML 2020:
      the protocol.
    """

    tasks: tuple[int, ...] = (1,)
    max_sentences: int = 70
    max_sentences_task3: int = 130
    renaming: bool = False
    think_steps: int = 0
    sentence_think_steps: int = 0
    controller: Literal["story", "sentence"] = "story"
    apart: bool = False
    oversampled: tuple[int, ...] = ()

    name: ClassVar[str] = "babi"
    pictured: ClassVar[tuple[str, ...]] = ("task=2", "task=3", "task=15")  # two facts, three facts, deduction

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(max_sentences=self.max_sentences, max_sentences_task3=self.max_sentences_task3)
        check_sizes(least=0, think_steps=self.think_steps, sentence_think_steps=self.sentence_think_steps)
        check_choice("controller", self.controller, CONTROLLERS)
        check_flags(renaming=self.renaming, apart=self.apart)
        self._check_chosen("oversampled")

    @functools.cached_property
    def _dataset(self) -> Dataset:
        return self._open(
            max_sentences=self.max_sentences, max_sentences_task3=self.max_sentences_task3, apart=self.apart
        )

    def use_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Sets the vocabulary to that of a trained model, so that the model can be used without the data set."""
        self.__dict__["_dataset"] = Dataset(vocabulary=vocabulary, counts=np.ones(vocabulary.size), splits={})

    @functools.cached_property
    def layout(self) -> Layout:
        """The steps of a sentence and of a question; reads the data."""
        return Layout(
            words=len(self._dataset.counts),
            think_steps=self.think_steps,
            sentence_think_steps=self.sentence_think_steps,
            controller=self.controller,
            apart=self.apart,
        )

    @functools.cached_property
    def _splits(self) -> dict[str, Split]:
        """The splits, with the number of steps of each record instead of its rows."""

        def steps(split: Split) -> np.ndarray:
            questions, sentences = split.questions, split.steps - split.questions
            return split.steps + self.think_steps * questions + self.sentence_think_steps * sentences

        return {name: split._replace(steps=steps(split)) for name, split in self._dataset.splits.items()}

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        from tasks.babi.loader import bucket_lengths

        return bucket_lengths(max(split.steps.max() for split in self._splits.values()))

    @property
    def output_features(self) -> int:
        """`C`, the number of answers; reads the data."""
        return len(self.answers)

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer of each class; reads the data."""
        return self.vocabulary.answers

    @property
    def vocabulary(self) -> Vocabulary:
        """Words and answers; reads the data."""
        return self._dataset.vocabulary

    @property
    def longest_story(self) -> int:
        """Largest number of sentences that a question sees in any of the tasks."""
        limits = [self.max_sentences_task3 if task == 3 else self.max_sentences for task in self.tasks]
        return max(limits)

    def encode(self, rows: Sequence[Sequence[str]]) -> np.ndarray:
        """Returns word ids `[T, W]` of sentences and questions, given as words in lower case.

        Raises:
          ValueError: a row is empty or too long, or has a word that is not in the vocabulary.
        """
        return encode_rows(rows, self.vocabulary.word_ids(), "the story")

    def loader(self, seed: int, batch_size: int, part: tuple[int, int] = (0, 1)) -> Loader:
        """Returns an endless iterator of training batches `[T, B, W]`; equal seeds give equal bytes.

        Args:
          seed: seed of the order and of the renaming, >= 0.
          batch_size: questions per batch, approximately.
          part: (index, count): this process reads one of `count` equal parts of each batch.
        """
        check_sizes(least=0, seed=seed)
        check_sizes(batch_size=batch_size)
        from tasks.babi.loader import BabiLoader

        change = Renaming(self.vocabulary, self.tasks) if self.renaming else None
        split = self._splits["train"]
        draws = 1 + np.bincount(self.oversampled, minlength=21)
        drawn = np.repeat(np.arange(len(split.steps)), draws[split.tasks])
        first = self._curriculum(split.tasks)
        return BabiLoader(split, drawn, self._lengths, int(seed), int(batch_size), change, part, self.layout, first)

    def encoder(self, rngs: nnx.Rngs) -> SentenceEncoder:
        """Returns a module from word ids `[T, B, W]` to sentence vectors and the codes of entities, `[T, B, D]`."""
        counts = self._dataset.counts
        marks = [max(counts)] * self.layout.marks  # as frequent words: no entities
        counts = np.append(counts, marks).astype(counts.dtype)
        return self._encoder(counts, self.layout.columns, rngs)

    def evaluations(self, split: str, batch_size: int) -> Mapping[str, Callable[[], Iterable[Batch]]]:
        """Returns sets with each question of "valid" or "test" once: "" has all chosen tasks, "task=N" one of several.

        Raises:
          ValueError: another split, or training files too short to hold a story out.
        """
        check_choice("split", split, ("valid", "test"))
        check_sizes(batch_size=batch_size)
        if split not in self._splits:
            raise ValueError(f"tasks {self.tasks} have no validation: a file needs 10 stories or more.")
        from tasks.babi.loader import evaluation_batches

        data = self._splits[split]
        chosen = {"": np.arange(len(data.steps))}
        if len(self.tasks) > 1:
            chosen |= {f"task={task}": np.flatnonzero(data.tasks == task) for task in self.tasks}
        for name, records in chosen.items():
            if not len(records):
                raise ValueError(f"{name} has no story of {split!r}: a training file needs 10 stories or more.")
        return {
            name: functools.partial(evaluation_batches, data, records, self._lengths, int(batch_size), self.layout)
            for name, records in chosen.items()
        }

    def metrics(self, logits: Array, batch: Batch) -> Mapping[str, Mean]:
        """Returns the fractions of right ("accuracy") and wrong ("error") answers; logits `[T, B, C]`."""
        return accuracy_and_error(logits, batch)

    def tokens(self, batch: Batch, index: int) -> list[str]:
        """Returns each step of example `index`: a sentence, a question as "? where is mary", or "think 1"."""
        words, kinds = self.vocabulary.words, self.layout.kinds(batch, index)
        rows = np.asarray(batch.inputs)[: len(kinds), index, :WORDS]
        texts = [" ".join(words[word - 1] for word in row if word != PADDING) for row in rows]
        labels = {-1: "", 0: "? "}
        labels |= {step: f"think {step}" for step in range(1, self.think_steps + 1)}
        for step in range(1, self.sentence_think_steps + 1):
            labels[self.think_steps + step] = f"think {step} of the sentence"
        return [labels[kind] + text for kind, text in zip(kinds.tolist(), texts, strict=True)]

    def render(self, batch: Batch, index: int) -> str:
        """Returns the sentences of example `index`, numbered, with its questions and, after "=", their answers."""
        lines, kinds = [], self.layout.kinds(batch, index)
        numbers = np.cumsum(kinds < 0)
        for step, token in enumerate(self.tokens(batch, index)):
            if kinds[step] <= 0:
                lines.append(token if kinds[step] == 0 else f"{numbers[step]} {token}")
            if batch.loss_mask[step, index]:
                lines.append(f"= {self.answers[int(batch.targets[step, index])]}")
        return "\n".join(lines) or "(padding)"
