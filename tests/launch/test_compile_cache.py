"""Tests the cache of compiled programs: its folder, that a second start compiles nothing, and faults of its files."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import pytest
from absl import logging
from jax.experimental.compilation_cache import compilation_cache

from launch.compile_cache import cache_folder, use_compilation_cache

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Returns the folder that holds the caches of a user, in which JAX keeps programs for this test only."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def warned(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    return lines


def start(number=1):
    """Compiles and runs a program without the programs in memory, as a new process does."""

    def program(x):
        return x + number

    program.__name__ = f"program{number}"
    assert jax.jit(program)(jnp.zeros(())) == number


def files(home):
    return {path.name: path.read_bytes() for path in home.rglob("*program*-cache")}


def test_a_second_start_takes_the_program_from_the_users_cache_folder(home, warned):
    use_compilation_cache()
    start()
    (name,) = files(home)
    assert (cache_folder() / name).is_file()
    assert cache_folder().is_relative_to(home / "mnm_jax")
    events = []
    listen = lambda event, **_: events.append(event)  # noqa: E731
    jax.monitoring.register_event_listener(listen)
    start()
    jax.monitoring.unregister_event_listener(listen)
    assert events.count("/jax/compilation_cache/cache_hits") == 1
    assert "/jax/compilation_cache/cache_misses" not in events
    assert not warned


def test_in_a_folder_that_the_user_named_to_jax_every_program_is_kept_and_a_damaged_file_replaced(home, warned):
    own = str(home / "own")
    jax.config.update("jax_compilation_cache_dir", own)
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == own
    start()
    ((name, whole),) = files(home).items()
    (home / "own" / name).write_bytes(whole[:20])
    start()
    assert files(home).keys() == {name} and len(files(home)[name]) > 20
    (line,) = warned
    assert line.startswith(f"the cache of compiled programs, {own}, failed: ")
    assert not cache_folder().exists()


@pytest.mark.parametrize(("named", "kept"), [("file/own", None), ("gs://bucket", "gs://bucket"), ("", "")])
def test_a_folder_that_cannot_be_written_a_bucket_and_none(home, warned, monkeypatch, named, kept):
    (home / "file").touch()
    monkeypatch.chdir(home)
    jax.config.update("jax_compilation_cache_dir", named)
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == kept
    assert [path.name for path in home.iterdir()] == ["file"]
    assert [line.startswith("compiled programs are not kept: ") for line in warned] == [True] * (kept is None)


def test_without_a_home_that_can_be_written_programs_are_compiled_and_one_warning_is_logged(home, warned, monkeypatch):
    (home / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    use_compilation_cache()
    start()
    assert jax.config.jax_compilation_cache_dir is None
    (line,) = warned
    assert line.startswith("compiled programs are not kept: ")
    assert str(home / "file") in line


def test_a_damaged_file_is_replaced_with_one_warning(home, warned):
    use_compilation_cache()
    start(1)
    start(2)
    whole = files(home)
    for path in home.rglob("*program*-cache"):
        path.write_bytes(path.read_bytes()[:20])
    start(1)
    start(2)
    assert files(home).keys() == whole.keys()
    assert all(len(content) > 20 for content in files(home).values())
    (line,) = warned
    assert line.startswith(f"the cache of compiled programs, {cache_folder()}, failed: ")


def test_a_full_disk_leaves_no_part_of_a_file_and_gives_one_warning(home, warned, monkeypatch):
    def fill(cache, key, content):
        (cache_folder() / f"{key}-cache").write_bytes(content[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    use_compilation_cache()
    monkeypatch.setattr("jax._src.lru_cache.LRUCache.put", fill)
    start(1)
    start(2)
    assert not files(home)
    (line,) = warned
    assert "No space left on device" in line


@pytest.mark.slow
def test_a_second_start_of_a_recipe_compiles_nothing(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_PERS"))}
    environment |= {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "launch.train", "--config=launch/configs/dictionary.py"]
    command += [f"--config.{name}" for name in ("model.hidden_features=4", "model.memory_features=3")]
    command += [f"--config.training.{name}" for name in ("steps=2", "batch_size=8", "seeds=1")]
    kept = []
    for run in ("first", "second"):
        subprocess.run([*command, f"--workdir={tmp_path / run}"], cwd=ROOT, env=environment, check=True)
        kept.append({path.name for path in tmp_path.rglob("*-cache")})
    assert kept[0] == kept[1]
    assert len(kept[0]) >= 3
    metrics = [json.loads((tmp_path / run / "summary.json").read_text())["metrics"] for run in ("first", "second")]
    assert metrics[0] == metrics[1]
