"""Tests the encoded data set on disk: built once, never opened when incomplete, never reused for other data."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("array_record")
pytest.importorskip("grain")
tfds = pytest.importorskip("tensorflow_datasets")

from tasks.babi import cache  # noqa: E402
from tasks.babi.archive import read_files  # noqa: E402
from tests.stories import text, write_data  # noqa: E402

OPTIONS = cache.Options(tasks=(1, 2), size="1k", max_sentences=2, max_sentences_task3=9)


def open_(data_dir, tmp_path, **changes):
    return cache.open_dataset(str(data_dir), str(tmp_path), OPTIONS._replace(**changes))


def test_records_by_hand(data_dir, tmp_path):
    dataset = open_(data_dir, tmp_path)
    assert dataset.vocabulary.words == ("home", "is", "left", "mary", "slept", "there", "went", "where", "who")
    assert dataset.vocabulary.answers[:5] == ("home", "somebody", "story0", "story1", "story10")
    train, valid, test = (dataset.splits[name] for name in ("train", "valid", "test"))
    # The tenth of 11 and of 12 stories is held out; the order is that of the files. A story is two readings.
    assert train.tasks.tolist() == [1] * 20 + [2] * 22
    assert [record["task"] for record in train.records] == [1] * 20 + [2] * 22
    stories = [story for story in (*range(9), 10, *range(9), 10, 11) for _ in range(2)]
    assert [record["story_index"] for record in train.records] == stories
    assert [record["story_index"] for record in valid.records] == [9] * 4
    assert test.tasks.tolist() == [1] * 2 + [2] * 4
    assert train.steps.tolist() == [3, 4] * 21 and train.questions.tolist() == [1, 2] * 21
    # Two sentences are kept: "mary went home", "mary slept there", "where is mary";
    # "mary slept there", "mary left there", "where is mary", "who left".
    first, second = (train.records[index] for index in (18, 19))
    rows = [[4, 7, 1], [4, 5, 6], [8, 2, 4], [4, 5, 6], [4, 3, 6], [8, 2, 4], [9, 3, 0]]
    np.testing.assert_array_equal(first["words"], np.pad(rows[:3], ((0, 0), (0, 8))))
    np.testing.assert_array_equal(second["words"], np.pad(rows[3:], ((0, 0), (0, 8))))
    np.testing.assert_array_equal(first["answers"], [-1, -1, 0])
    np.testing.assert_array_equal(second["answers"], [-1, -1, 4, 1])
    assert {second[name].dtype for name in ("words", "answers")} == {np.dtype(np.int32)}


def test_task_3_has_a_limit_of_its_own(tmp_path):
    """Stories of three sentences, of which a question sees the last two or all three."""
    data_dir = write_data(tmp_path / "data", tasks=(2, 3))
    for limits, steps in [((2, 9), [3, 4, 3, 4, 6, 6, 6]), ((9, 2), [6, 6, 3, 4, 3, 4, 3, 4])]:
        options = dict(zip(("max_sentences", "max_sentences_task3"), limits, strict=True))
        test = open_(data_dir, tmp_path, tasks=(2, 3), **options).splits["test"]
        assert test.steps.tolist() == steps and [len(record["words"]) for record in test.records] == steps


def test_the_metadata_are_those_of_the_records(data_dir, tmp_path):
    for max_sentences in (1, 2, 70):
        for split in open_(data_dir, tmp_path, max_sentences=max_sentences).splits.values():
            records = list(split.records)
            assert split.steps.tolist() == [len(record["words"]) for record in records]
            assert split.steps.tolist() == [len(record["answers"]) for record in records]
            assert split.questions.tolist() == [np.sum(record["answers"] >= 0) for record in records]
            assert split.tasks.tolist() == [record["task"] for record in records]


def test_words_are_counted_in_the_training_stories_alone(data_dir, tmp_path):
    dataset = open_(data_dir, tmp_path)
    words = np.concatenate([np.asarray(record["words"]).ravel() for record in dataset.splits["train"].records])
    expected = np.bincount(words[words > 0], minlength=dataset.vocabulary.size)
    assert dataset.counts.tolist() == expected.tolist()
    assert dataset.counts[0] == 0 and dataset.counts.max() > 1


def test_neither_a_build_nor_an_opening_prints_anything(data_dir, tmp_path, capfd, caplog):
    for _ in range(2):
        open_(data_dir, tmp_path)
        assert capfd.readouterr() == ("", "")
        assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []


def test_the_second_opening_builds_nothing(data_dir, tmp_path, entries, monkeypatch):
    first = open_(data_dir, tmp_path)
    monkeypatch.setattr(cache, "_build", lambda *_: pytest.fail("built again"))
    second = open_(data_dir, tmp_path)
    assert first.vocabulary == second.vocabulary and len(entries()) == 1
    for name in ("words", "answers"):
        np.testing.assert_array_equal(*(opened.splits["test"].records[3][name] for opened in (first, second)))


def test_other_files_or_options_are_other_entries(data_dir, tmp_path, entries):
    open_(data_dir, tmp_path)
    other = write_data(tmp_path / "other", person="john")
    assert "john" in open_(other, tmp_path).vocabulary.words
    assert "john" not in open_(data_dir, tmp_path).vocabulary.words
    assert len(entries()) == 2
    assert open_(data_dir, tmp_path, max_sentences=1).splits["test"].steps.tolist() == [2, 3] * 3
    assert open_(data_dir, tmp_path, tasks=(1,)).splits["test"].tasks.tolist() == [1, 1]
    assert len(entries()) == 4


def test_one_changed_byte_or_option_is_another_entry(data_dir, tmp_path):
    files = read_files(data_dir, "1k", (1, 2))
    changed = dict(files)
    changed[2, "test"] = files[2, "test"]._replace(data=files[2, "test"].data.replace(b"home", b"hone"))
    moved = {key: file._replace(path="elsewhere") for key, file in files.items()}
    assert cache._fingerprint(files, OPTIONS) == cache._fingerprint(moved, OPTIONS)
    assert cache._fingerprint(files, OPTIONS) != cache._fingerprint(changed, OPTIONS)
    others = [{"tasks": (1, 3)}, {"size": "10k"}, {"max_sentences": 3}, {"max_sentences_task3": 8}, {"apart": True}]
    options = [OPTIONS, *(OPTIONS._replace(**other) for other in others)]
    assert len({cache._fingerprint(files, each) for each in options}) == 6


def test_few_stories_have_no_validation(tmp_path):
    folder = Path(write_data(tmp_path)) / "tasks_1-20_v1-2/en"
    (folder / "qa1_name_train.txt").write_text(text(9, "mary"))
    assert set(open_(tmp_path, tmp_path, tasks=(1,)).splits) == {"train", "test"}


def test_the_builder_alone_is_a_tfds_data_set(tmp_path):
    data_dir = write_data(tmp_path / "data", tasks=range(1, 21))
    config = tfds.download.DownloadConfig(manual_dir=data_dir, try_download_gcs=False)
    records = tfds.data_source(
        "babi_qa/1k",
        split="test",
        data_dir=str(tmp_path),
        download_and_prepare_kwargs={"download_dir": str(tmp_path / "downloads"), "download_config": config},
    )
    # With 70 sentences a story is one reading.
    assert [record["task"] for record in records] == [task for task in range(1, 21) for _ in range(task)]
    assert {tuple(record["answers"] >= 0) for record in records} == {(False, False, True, False, True, True)}
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("package", ["array_record", "grain", "tensorflow_datasets"])
def test_a_missing_extra_is_named(data_dir, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install mnm_jax\[data\]$"):
        open_(data_dir, tmp_path)


def test_the_package_imports_without_the_extra():
    program = (
        "import sys\n"
        "sys.modules.update(array_record=None, grain=None, tensorflow_datasets=None, tensorflow=None)\n"
        "import tasks.babi\n"
        "assert tasks.babi.Babi(tasks=(1, 2)).input_features == 64\n"
        "assert len(list(tasks.babi.parse(b'1 A b.\\n2 C?\\td\\t1\\n', 'file', 1))) == 1\n"
    )
    root = Path(cache.__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
