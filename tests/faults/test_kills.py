"""Tests that a run resumes to the reference's numbers from every state that a kill leaves on the disk."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mnm_jax.training import read_metrics
from tests.faults.conftest import _tried, contents, copy_of, snapshots, without_seconds

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def killed(reference, unfinished, tmp_path):
    """Returns the states of a run while it makes its last update, saves, tests, and removes an old checkpoint."""
    with snapshots(unfinished, tmp_path / "states") as states:
        reference.train(unfinished, every=0.0)
    return states


def torn(states, into):
    """Returns copies of states in which a file that grows before the next state has only half of its new bytes."""
    found = []
    for before, after in zip(states, states[1:], strict=False):
        old, new = contents(before), contents(after)
        for name, data in new.items():
            start = old.get(name, b"")
            if len(data) > len(start) + 1 and data.startswith(start):
                copy = copy_of(before, into / str(len(found)))
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (copy / name).write_bytes(data[: (len(start) + len(data)) // 2])
                found.append(copy)
    return found


def test_a_run_survives_a_kill_before_any_operation_of_a_save(reference, killed):
    assert len(killed) > 10
    names = {name for state in killed for name in contents(state)}
    assert {"checkpoints/4.unfinished/", "checkpoints/4.unfinished/files.json", "checkpoints/2.removed/"} <= names
    for state in killed[:: len(killed) // 8]:
        reference.survives("kills", state)


@pytest.mark.slow
def test_a_run_survives_every_kill_of_a_save_also_within_a_write(reference, killed, tmp_path):
    for state in [*killed, *torn(killed, tmp_path / "torn")]:
        reference.survives("kills", state)


@pytest.mark.slow
def test_a_command_survives_signals_that_kill_it(tmp_path):
    """Sends SIGKILL after each new checkpoint or after a moment, until the run ends."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from launch.configs import dictionary\n\n\ndef get_config():\n    config = dictionary.get_config('lstm')\n"
        "    config.task.update(support=2, queries=1, evaluation_batches=1)\n    config.model.hidden_features = 4\n"
        "    config.training.update(seeds=1, steps=600, log_every=50, eval_every=200, checkpoint_seconds=0.2)\n"
        "    return config\n"
    )

    def start(name):
        words = [sys.executable, "-m", "launch.train", f"--config={recipe}", f"--workdir={tmp_path / name}"]
        return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    kills = 0
    while kills < 5:
        process, before = start("killed"), checkpoints(tmp_path / "killed")
        while process.poll() is None and checkpoints(tmp_path / "killed") == before:
            time.sleep(0.01)
        time.sleep(0.03 * kills)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
    assert kills >= 2
    _tried["kills"] += kills
    assert start("killed").wait() == 0
    assert without_seconds(read_metrics(tmp_path / "killed")) == without_seconds(read_metrics(tmp_path / "whole"))


def checkpoints(folder):
    return sorted(os.listdir(folder / "checkpoints")) if (folder / "checkpoints").exists() else []
