"""Tests that archive and folder give the same bytes, and that errors name missing and damaged data."""

import io
import tarfile

import pytest

from tasks.babi.archive import ARCHIVE, FOLDER, data_folder, read_files

FILES = {
    f"{folder}/qa{task}_some-name_{split}.txt": f"{folder} {task} {split}".encode()
    for folder in ("en", "en-10k")
    for task in (1, 11)
    for split in ("train", "test")
}


def write_folder(root):
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def write_archive(path):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in {"LICENSE.txt": b"free", **FILES}.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def texts(files):
    return {key: file.data.decode() for key, file in files.items()}


@pytest.mark.parametrize("layout", ["archive", "folder", "the folder itself"])
def test_every_layout_gives_the_same_files(tmp_path, layout):
    data_dir = tmp_path
    if layout == "archive":
        write_archive(tmp_path / ARCHIVE)
    else:
        write_folder(tmp_path / FOLDER)
        data_dir = tmp_path / FOLDER if layout == "the folder itself" else tmp_path
    before = sorted(tmp_path.rglob("*"))
    # Task 1 must not be confused with task 11.
    assert texts(read_files(str(data_dir), "1k", [1])) == {(1, "test"): "en 1 test", (1, "train"): "en 1 train"}
    assert texts(read_files(str(data_dir), "10k", (11, 1))) == {
        (task, split): f"en-10k {task} {split}" for task in (1, 11) for split in ("test", "train")
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_the_folder_is_read_before_the_archive(tmp_path):
    write_archive(tmp_path / ARCHIVE)
    write_folder(tmp_path / FOLDER)
    (tmp_path / FOLDER / "en/qa1_some-name_test.txt").write_bytes(b"mine")
    assert read_files(tmp_path, "1k", [1])[1, "test"].data == b"mine"


def test_the_folder_is_the_one_given_or_that_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("MNM_BABI_DIR", raising=False)
    with pytest.raises(FileNotFoundError, match=r"as data_dir \(--config.task.data_dir=DIR .* MNM_BABI_DIR;"):
        data_folder("")
    monkeypatch.setenv("MNM_BABI_DIR", str(tmp_path / "set"))
    assert data_folder("") == tmp_path / "set"
    assert data_folder(tmp_path / "given") == tmp_path / "given"  # the argument takes precedence over the environment
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data_folder("here/data") == tmp_path / "here/data" and data_folder("~/data") == tmp_path / "home/data"


def test_missing_data_say_where_what_and_whence(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_files(tmp_path / "nowhere", "1k", [1])
    message = str(error.value)
    assert str(tmp_path / "nowhere") in message and ARCHIVE in message and "research.facebook.com" in message
    assert "\n" not in message


@pytest.mark.parametrize("layout", ["archive", "folder"])
def test_a_missing_file_is_named(tmp_path, layout):
    write_archive(tmp_path / ARCHIVE) if layout == "archive" else write_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file en-10k/qa2_\*_test\.txt: put the unchanged"):
        read_files(tmp_path, "10k", [1, 2])


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_a_damaged_archive_is_named(tmp_path, keep):
    write_archive(tmp_path / ARCHIVE)
    data = (tmp_path / ARCHIVE).read_bytes()
    assert len(data) > keep + 20
    (tmp_path / ARCHIVE).write_bytes(data[:keep] + b"rubbish")
    with pytest.raises(ValueError, match=rf"{ARCHIVE} cannot be read .* again") as error:
        read_files(tmp_path, "1k", [1])
    assert "\n" not in str(error.value)
