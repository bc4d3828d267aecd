"""Tests the lock of a run's folder: who holds it, when it ends, and file systems without locks."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from mnm_jax.training import load_params, lock_workdir, read_metrics
from tests.training.conftest import Model

HOLD = """
import fcntl, json, os, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(json.dumps({"process": os.getpid(), "host": "elsewhere", "since": "2026-01-01"}))
file.flush()
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_ends_with_the_name_of_the_first_until_that_is_killed(reference, unfinished):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, unfinished / ".lock"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        before = (unfinished / "metrics.jsonl").read_bytes()
        message = rf"{unfinished} is in use by process {holder.pid} on host elsewhere since 2026-01-01: wait until it"
        with pytest.raises(BlockingIOError, match=message) as caught:
            reference.train(unfinished)
        assert "\n" not in str(caught.value)
        assert (unfinished / "metrics.jsonl").read_bytes() == before
        assert load_params(unfinished, Model)[1] == 3 and len(read_metrics(unfinished)) > 3  # reading needs no lock
    finally:
        holder.kill()
        holder.communicate()
    reference.survives("two processes", unfinished)


def test_the_holder_is_on_record_while_it_holds_and_a_thread_may_lock_again(tmp_path):
    folder, refused = tmp_path / "new/run", []

    def from_another_thread():
        holder = f"process {os.getpid()} on host {socket.gethostname()} since 20"
        with pytest.raises(BlockingIOError, match=holder), lock_workdir(folder):
            refused.append(False)
        refused.append(True)

    with lock_workdir(folder), lock_workdir(folder):
        holder = json.loads((folder / ".lock").read_text())
        assert (holder["process"], holder["host"]) == (os.getpid(), socket.gethostname())
        thread = threading.Thread(target=from_another_thread)
        thread.start()
        thread.join()
    assert refused == [True] and (folder / ".lock").read_text() == ""
    with lock_workdir(folder):
        pass


def test_a_file_system_without_locks_is_named_in_a_warning(reference, unfinished, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    reference.survives("two processes", unfinished)
    assert f"{unfinished} cannot be locked ([Errno 37] No locks available). Do not use it in two" in caplog.text


@pytest.mark.slow
def test_of_two_commands_in_one_workdir_one_trains_and_the_other_is_refused(reference, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from launch.configs import dictionary\n\n\ndef get_config():\n    config = dictionary.get_config('lstm')\n"
        "    config.task.update(support=2, queries=1, evaluation_batches=1)\n    config.model.hidden_features = 4\n"
        "    config.training.update(seeds=1, steps=300, log_every=6, eval_every=100)\n    return config\n"
    )
    words = [sys.executable, "-m", "launch.train", f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
    both = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=280)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    (refused,) = (text for text, process in zip(said, both, strict=True) if process.returncode)
    (winner,) = (process for process in both if not process.returncode)
    assert f"is in use by process {winner.pid} on host {socket.gethostname()} since " in refused.splitlines()[-1]
    assert len([line for line in read_metrics(tmp_path / "run") if "train/loss" in line]) == 50
