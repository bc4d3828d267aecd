"""Tests the commit that a run reports."""

import subprocess

from launch.runs import versions
from launch.runs.versions import commit


def test_the_commit_of_a_checkout_says_whether_files_differ_from_it(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)

    assert commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "inside").mkdir()
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "first")
    full = subprocess.check_output(["git", "-C", tmp_path, "rev-parse", "HEAD"], text=True).strip()
    assert commit(tmp_path) == full[:12]
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == f"{full[:12]}-dirty"
    assert commit(tmp_path / "inside") is None  # as a package installed in another repository


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None


def test_a_run_is_of_the_commit_at_the_start_of_its_process(monkeypatch):
    """A checkout may move on while a process of hours runs the files that it has imported."""
    monkeypatch.setattr(versions, "commit", iter(["first", "second"]).__next__)
    versions.commit_at_start.cache_clear()
    assert [versions.commit_at_start() for _ in range(2)] == ["first", "first"]
    versions.commit_at_start.cache_clear()
