"""A run that trains in a tenth of a second, the states that a kill leaves on the disk, and the figures of the faults.

All starts share the compiled programs of one session. A kill is not sent: the folder of the run is copied before every
operation on a file, which is the state that a killed process leaves at that point.
"""

import collections
import contextlib
import functools
import os
import pathlib
import resource
import shutil
import sys

import jax
import numpy as np
import pytest

from mnm_jax.training import _loop, read_metrics, train
from tests.training.conftest import Model, Recall, config

STEPS = 4
_tried, _lost = collections.Counter(), collections.Counter()
_watch = {"folder": None, "snapshot": None}


def pytest_terminal_summary(terminalreporter):
    if _tried:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(_tried.items()))
        lost = sum(_lost.values())
        terminalreporter.write_line(f"faults: {sum(_tried.values())} tried ({kinds}), {lost} lost")


class Reference:
    """The run without a fault, and a comparison with it bit for bit."""

    def __init__(self, folder):
        self.folder, self._made = folder, {}
        self.result = self.train(folder)
        self.lines = without_seconds(read_metrics(folder))

    def train(self, folder, steps=STEPS, task=None, every=1e9):
        """Trains or resumes a run; `every`: seconds between checkpoints."""
        settings = config(steps=steps, log_every=1, eval_every=2, seeds=1, checkpoint_seconds=every)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("make_parallel_update", "make_evaluate"):
                patch.setattr(_loop, name, functools.partial(self._make_once, name, getattr(_loop, name)))
            return train(task or Recall(reads=True), Model, settings, folder, devices=jax.devices()[:1])

    def _make_once(self, name, make, *args, **kwargs):
        if name not in self._made:
            self._made[name] = make(*args, **kwargs)
        return self._made[name]

    def survives(self, kind, folder):
        """Resumes the run in `folder` and checks its numbers and its record."""
        _tried[kind] += 1
        _lost[kind] += 1
        found = self.train(folder)
        for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(self.result.params), strict=True):
            np.testing.assert_array_equal(a, b)
        assert {name: value.tolist() for name, value in found.metrics.items()} == {
            name: value.tolist() for name, value in self.result.metrics.items()
        }
        assert without_seconds(read_metrics(folder)) == self.lines
        _lost[kind] -= 1


def without_seconds(lines):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return Reference(tmp_path_factory.mktemp("reference") / "run")


@pytest.fixture
def unfinished(reference, tmp_path):
    """Returns the folder of a run with checkpoints after updates 2 and 3, that was killed before its end."""

    class Killed(Exception):
        pass

    def kill(position, batch):
        if position == 3:
            raise Killed

    with contextlib.suppress(Killed):
        reference.train(tmp_path / "run", task=Recall(reads=True, before=kill), every=0.0)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["2", "3"]
    return tmp_path / "run"


def _observe(event, args):
    folder = _watch["folder"]
    if folder is None or not event.startswith(("open", "os.", "shutil.")):
        return
    if any(isinstance(arg, str | bytes | os.PathLike) and os.fsdecode(arg).startswith(folder) for arg in args):
        _watch["folder"] = None  # copying opens files, too
        try:
            _watch["snapshot"]()
        finally:
            _watch["folder"] = folder


sys.addaudithook(_observe)


@contextlib.contextmanager
def snapshots(folder, into):
    """Yields a list that receives the different states of `folder` before the operations on its files, as copies."""
    states, seen = [], set()

    def snapshot():
        content = contents(folder)
        key = hash(tuple(sorted(content.items())))
        if key in seen:
            return
        seen.add(key)
        copy = into / str(len(states))
        copy.mkdir(parents=True)
        for name, data in sorted(content.items()):
            if name.endswith("/"):
                (copy / name).mkdir(parents=True)
            else:
                (copy / name).write_bytes(data)
        states.append(copy)

    _watch.update(folder=str(folder), snapshot=snapshot)
    try:
        yield states
    finally:
        _watch["folder"] = None


def contents(folder):
    """Returns files by name, and folders as "NAME/", except TensorBoard's and any that vanish meanwhile."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if "tensorboard" not in path.parts:
                name = str(path.relative_to(folder))
                found |= {f"{name}/": b""} if path.is_dir() else {name: path.read_bytes()}
    return found


def damage(path, how):
    """Damages a file."""
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        path.write_bytes(how)


@contextlib.contextmanager
def largest_file(size):
    """Lets the system refuse to write any file beyond `size` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def copy_of(folder, to):
    return pathlib.Path(shutil.copytree(folder, to))
