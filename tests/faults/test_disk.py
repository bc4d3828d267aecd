"""Tests that a full disk is named in one line with file and remedy, and costs no number."""

import contextlib
import gc
import pathlib
import subprocess

import pytest

from mnm_jax._files import whole_file
from tests.faults.conftest import _tried, largest_file


@pytest.mark.parametrize("size", [0, 150, pytest.param(300, marks=pytest.mark.slow), 1000])
def test_a_full_disk_is_named_and_the_run_resumes(reference, unfinished, tmp_path, size):
    """The system refuses each file beyond a size: the record, the events of TensorBoard, or files of a checkpoint."""
    for folder in (tmp_path / "new", unfinished):
        with largest_file(size), pytest.raises(OSError, match="could not be written") as caught:
            reference.train(folder, every=0.0)
        message = str(caught.value)
        assert message.startswith(str(folder)) and "too large" in message and "Free space on the disk" in message
        assert "\n" not in message
        reference.survives("full disks", folder)


def test_a_file_that_does_not_fit_leaves_the_former_one(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("former")
    message = r"summary\.json could not be written: File too large"
    with largest_file(10), pytest.raises(OSError, match=message), whole_file(path) as file:
        file.write("x" * 100)
    assert path.read_text() == "former" and list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # unread futures of Orbax
def test_a_file_system_without_space(reference, tmp_path):
    """A small file system in memory, for which the tests need the rights of the administrator."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with contextlib.ExitStack() as stack:
        for kibibytes in (4, 16, 24, 40, 64, 120):
            mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", disk]
            if subprocess.run(mount, check=False).returncode:
                pytest.skip("no right to mount a file system")
            stack.callback(subprocess.run, ["umount", disk], check=True)
            with pytest.raises(OSError, match=rf"{disk}.*No space left on device.*Free space") as caught:
                reference.train(disk / "run", every=0.0)
            assert "\n" not in str(caught.value)
            subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
            reference.survives("full disks", disk / "run")
            stack.close()
            gc.collect()
    assert _tried["full disks"] and not any(pathlib.Path(disk).iterdir())
