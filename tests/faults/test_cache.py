"""Tests the cache of bAbI stories: builds that fail, are killed or meet, full disks, damaged entries and archives."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("array_record")
pytest.importorskip("grain")
pytest.importorskip("tensorflow_datasets")

from tasks.babi import builder, cache  # noqa: E402
from tasks.babi.archive import ARCHIVE, FOLDER, read_files  # noqa: E402
from tests.faults.conftest import _lost, _tried, contents, copy_of, damage, largest_file  # noqa: E402
from tests.tasks.test_babi_cache import OPTIONS, open_  # noqa: E402


@pytest.fixture(scope="module")
def built(data_dir, tmp_path_factory):
    """Returns a cache folder with one entry, and its first test record."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, numbers(open_(data_dir, folder))


def numbers(dataset):
    return [record["words"].tolist() for record in dataset.splits["test"].records]


def test_a_build_that_fails_leaves_no_entry(data_dir, tmp_path, entries, monkeypatch):
    encode, calls = builder.encode_reading, []

    def fails_late(*args):
        calls.append(args)
        if len(calls) == 43:  # in the second split, after the first is written
            raise OSError("disk full")
        return encode(*args)

    monkeypatch.setattr(builder, "encode_reading", fails_late)
    with pytest.raises(OSError, match="disk full"):
        open_(data_dir, tmp_path)
    assert not list((tmp_path / "babi").iterdir())
    monkeypatch.undo()
    assert [len(split.records) for split in open_(data_dir, tmp_path).splits.values()] == [42, 4, 6]
    assert len(entries()) == 1


def test_a_build_that_is_killed_is_never_taken_for_whole(data_dir, tmp_path, entries):
    """The process ends without any clean-up, after every file is written and before the entry has its name."""
    program = (
        "import os, sys\n"
        "from tasks.babi import cache\n"
        "cache.os.rename = lambda *_: os._exit(9)\n"
        f"cache.open_dataset(sys.argv[1], sys.argv[2], cache.Options(*{tuple(OPTIONS)!r}))\n"
    )
    command = [sys.executable, "-c", program, data_dir, str(tmp_path)]
    root = Path(cache.__file__).parents[2]
    assert subprocess.run(command, cwd=root, capture_output=True, timeout=120).returncode == 9
    left_behind = list((tmp_path / "babi").glob(".building-*/**/*array_record*"))
    assert left_behind and not entries()
    assert [len(split.records) for split in open_(data_dir, tmp_path).splits.values()] == [42, 4, 6]
    assert len(entries()) == 1


def test_two_builds_at_once_agree(data_dir, tmp_path, entries, monkeypatch):
    rename, renamed = os.rename, []

    def another_is_first(source, target):
        if not renamed:
            renamed.append(target)
            open_(data_dir, tmp_path)
        rename(source, target)

    monkeypatch.setattr(cache.os, "rename", another_is_first)
    dataset = open_(data_dir, tmp_path)
    assert renamed and len(entries()) == 1 and len(dataset.splits["train"].records) == 42
    assert not list((tmp_path / "babi").glob(".building-*"))


def test_a_damaged_entry_is_named_and_built_again(data_dir, built, tmp_path, caplog):
    (entry,) = (path for path in (built[0] / "babi").glob("*") if not path.name.startswith("."))
    files = [name for name in contents(entry) if not name.endswith("/")]
    assert "files.json" in files and len(files) > 5
    for number, name in enumerate(files):
        _tried["damaged caches"] += 1
        _lost["damaged caches"] += 1
        folder, how = copy_of(built[0], tmp_path / str(number)), ("removed", "cut", "flipped")[number % 3]
        damage(folder / "babi" / entry.name / name, how)
        caplog.clear()
        assert numbers(open_(data_dir, folder)) == built[1]
        assert f"{folder / 'babi' / entry.name} are damaged ({name} " in caplog.text, (name, how)
        _lost["damaged caches"] -= 1


def test_a_full_disk_is_named_and_leaves_no_entry(data_dir, tmp_path, entries):
    with largest_file(100), pytest.raises(OSError, match=rf"{tmp_path}/babi/.* could not be written: ") as caught:
        open_(data_dir, tmp_path)
    assert "\n" not in str(caught.value) and "Free space" in str(caught.value)
    assert not entries()
    assert [len(split.records) for split in open_(data_dir, tmp_path).splits.values()] == [42, 4, 6]


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files:
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_no_flipped_bit_of_an_archive_changes_a_story(tmp_path):
    """The first bytes of a gzip file hold a time and the name of a system, which no checksum covers."""
    files = [(f"en/qa1_name_{split}.txt", os.urandom(300)) for split in ("train", "test")]
    path = tmp_path / ARCHIVE
    write_archive(path, files)
    good = path.read_bytes()
    assert gzip.decompress(good)
    accepted = 0
    for position in range(0, len(good), 3):
        _tried["damaged archives"] += 1
        path.write_bytes(good[:position] + bytes([good[position] ^ (1 << position % 8)]) + good[position + 1 :])
        try:
            found = read_files(tmp_path, "1k", [1])
        except ValueError as error:
            assert f"{ARCHIVE} cannot be read (" in str(error) and "\n" not in str(error)
            continue
        accepted += 1
        assert [file.data for file in found.values()] == [files[1][1], files[0][1]]
    assert accepted < 15


def test_an_archive_that_is_longer_than_its_content_or_cut_before_its_checksum_is_refused(tmp_path):
    path = tmp_path / ARCHIVE
    write_archive(path, [(f"en/qa1_name_{split}.txt", b"text") for split in ("train", "test")])
    good = path.read_bytes()
    for data in (good[:-8], good[:-1], good + b"more"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{ARCHIVE} cannot be read .* again"):
            read_files(tmp_path, "1k", [1])


@pytest.mark.parametrize("second", ["en/qa1_name_train.txt", "en/qa1_other-name_train.txt"])
def test_two_files_of_one_task_are_refused(tmp_path, second):
    names = [f"en/qa1_name_{split}.txt" for split in ("train", "test")]
    write_archive(tmp_path / ARCHIVE, [(name, b"text") for name in (*names, second)])
    with pytest.raises(ValueError, match=rf"{names[0]} and .*{second} both hold task 1, split 'train': keep the"):
        read_files(tmp_path, "1k", [1])
