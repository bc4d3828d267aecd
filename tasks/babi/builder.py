"""The bAbI questions as a TFDS data set, without TensorFlow: `array_record` files and `tfds.data_source`.

Import this module only where the extra packages `mnm_jax[data]` are needed; `tasks.babi` itself does without.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from tasks.babi.archive import ARCHIVE, read_files
from tasks.babi.encode import WORDS, encode_question
from tasks.babi.parse import Question, parse
from tasks.babi.vocabulary import Vocabulary, build_vocabulary

VALID_EVERY = 10  # every tenth training story is held out for validation
SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(eq=False, kw_only=True)
class BabiConfig(tfds.core.BuilderConfig):
    """Which questions, and how much of their stories: see `tasks.babi.Babi`."""

    tasks: tuple[int, ...] = tuple(range(1, 21))
    size: str = "10k"
    max_sentences: int = 70
    max_sentences_task3: int = 130


class BabiQa(tfds.core.GeneratorBasedBuilder):
    """One record a question: `words` int32 `[T, W]` (the question last), `answer`, `task` and `story_index`.

    Splits "train", "valid" (every tenth story of the training files) and "test". The records keep the order of the
    files, task by task. `info.metadata` holds `words` and `answers` (the vocabulary) and, for each split, the number
    of rows `T` and the task of every record (`steps`, `tasks`), so that batches of like length can be planned
    without reading the records.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [BabiConfig(name="10k"), BabiConfig(name="1k", size="1k")]
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put the official {ARCHIVE} of the bAbI project into the manual directory."
    # TFDS would ask `importlib_resources`, which it installs for Python 3.8 only.
    code_path = epath.Path(__file__)

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        super().__init__(file_format=file_format, **kwargs)  # the default of TFDS, tfrecord, needs TensorFlow

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="bAbI tasks v1-2 (Weston et al., 2015): questions about short stories.",
            features=tfds.features.FeaturesDict(
                {
                    "words": tfds.features.Tensor(shape=(None, WORDS), dtype=np.int32, encoding="bytes"),
                    "answer": np.int32,
                    "task": np.int32,
                    "story_index": np.int32,
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        config = self.builder_config
        splits = {split: [] for split in SPLITS}
        for (task, file_split), file in read_files(dl_manager.manual_dir, config.size, config.tasks).items():
            for question in parse(file.data, file.path, task):
                splits[_split(file_split, question.story_index)].append(question)
        # TFDS refuses an empty split; files of fewer than ten stories have no validation.
        splits = {split: questions for split, questions in splits.items() if questions}
        vocabulary = build_vocabulary(question for questions in splits.values() for question in questions)
        self.info.metadata.update(
            words=vocabulary.words,
            answers=vocabulary.answers,
            steps={
                split: [min(len(question.story), self._limit(question.task)) + 1 for question in questions]
                for split, questions in splits.items()
            },
            tasks={split: [question.task for question in questions] for split, questions in splits.items()},
        )
        return {split: self._generate_examples(questions, vocabulary) for split, questions in splits.items()}

    def _generate_examples(
        self, questions: Iterable[Question], vocabulary: Vocabulary
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        word_ids, answer_ids = vocabulary.word_ids(), vocabulary.answer_ids()
        for key, question in enumerate(questions):
            yield (
                key,
                {
                    "words": encode_question(question, word_ids, self._limit(question.task)),
                    "answer": answer_ids[question.answer],
                    "task": question.task,
                    "story_index": question.story_index,
                },
            )

    def _limit(self, task: int) -> int:
        return self.builder_config.max_sentences_task3 if task == 3 else self.builder_config.max_sentences


def _split(file_split: str, story_index: int) -> str:
    if file_split == "train" and story_index % VALID_EVERY == VALID_EVERY - 1:
        return "valid"
    return file_split
