"""The bAbI questions as a TFDS data set, without TensorFlow: `array_record` files and `tfds.data_source`.

Import this module only where the packages of `pip install 'mnm_jax[data]'` are required; `tasks.babi` imports none.

Shape letters: `T` rows of a reading, `W` words of a row.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from tasks.babi.archive import ARCHIVE, read_files
from tasks.babi.encode import WORDS, encode_reading
from tasks.babi.parser import parse
from tasks.babi.readings import Reading, readings
from tasks.babi.vocabulary import Vocabulary, build_vocabulary

VALID_EVERY = 10  # one story in ten of the training files is held out for validation
SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(eq=False, kw_only=True)
class BabiConfig(tfds.core.BuilderConfig):
    """The options of the data set; see `tasks.babi.Babi`."""

    tasks: tuple[int, ...] = tuple(range(1, 21))
    size: str = "10k"
    max_sentences: int = 70
    max_sentences_task3: int = 130
    apart: bool = False


class BabiQa(tfds.core.GeneratorBasedBuilder):
    """One record per reading: `words` int32 `[T, W]`, `answers` int32 `[T]` (-1: no question), `task`, `story_index`.

    Splits "train", "valid" (every tenth story of the training files) and "test". Records keep the order of the files,
    task by task. `info.metadata` holds `words` and `answers` (the vocabulary), `counts` (uses of each word id in
    training), and for each split the number of rows and of questions and the task of every record (`steps`,
    `questions`, `tasks`), so that batches of similar length are planned without reading the records.
    """

    VERSION = tfds.core.Version("2.0.0")
    BUILDER_CONFIGS = [BabiConfig(name="10k"), BabiConfig(name="1k", size="1k")]
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put the official {ARCHIVE} of the bAbI project into the manual directory."
    # Without it TFDS imports `importlib_resources`, which it installs for Python 3.8 only.
    code_path = epath.Path(__file__)

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        super().__init__(file_format=file_format, **kwargs)  # the default of TFDS, tfrecord, needs TensorFlow

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="bAbI tasks v1-2 (Weston et al., 2015): short stories with questions.",
            features=tfds.features.FeaturesDict(
                {
                    "words": tfds.features.Tensor(shape=(None, WORDS), dtype=np.int32, encoding="bytes"),
                    "answers": tfds.features.Tensor(shape=(None,), dtype=np.int32),
                    "task": np.int32,
                    "story_index": np.int32,
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        config = self.builder_config
        splits: dict[str, list[Reading]] = {split: [] for split in SPLITS}
        for (task, file_split), file in read_files(dl_manager.manual_dir, config.size, config.tasks).items():
            longest = config.max_sentences_task3 if task == 3 else config.max_sentences
            for reading in readings(parse(file.data, file.path, task), longest, config.apart):
                splits[_split(file_split, reading.story_index)].append(reading)
        # TFDS refuses an empty split; files of fewer than ten stories have no validation.
        splits = {split: found for split, found in splits.items() if found}
        vocabulary = build_vocabulary(reading for found in splits.values() for reading in found)
        self.info.metadata.update(
            words=vocabulary.words,
            answers=vocabulary.answers,
            counts=_counts(splits["train"], vocabulary),
            steps={split: [len(reading.rows) for reading in found] for split, found in splits.items()},
            questions={
                split: [sum(answer is not None for answer in reading.answers) for reading in found]
                for split, found in splits.items()
            },
            tasks={split: [reading.task for reading in found] for split, found in splits.items()},
        )
        return {split: self._generate_examples(found, vocabulary) for split, found in splits.items()}

    def _generate_examples(
        self, found: Iterable[Reading], vocabulary: Vocabulary
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        word_ids, answer_ids = vocabulary.word_ids(), vocabulary.answer_ids()
        for key, reading in enumerate(found):
            yield key, encode_reading(reading, word_ids, answer_ids)


def _counts(found: Iterable[Reading], vocabulary: Vocabulary) -> list[int]:
    """Returns the number of uses of each word id; 0 for the padding."""
    used = collections.Counter(word for reading in found for row in reading.rows for word in row)
    return [0, *(used[word] for word in vocabulary.words)]


def _split(file_split: str, story_index: int) -> str:
    """Returns the split of a story: "valid" for one in ten of the training files."""
    if file_split == "train" and story_index % VALID_EVERY == VALID_EVERY - 1:
        return "valid"
    return file_split
