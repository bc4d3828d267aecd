"""Tests runs of several real processes on one machine: same numbers as one process, resuming, signals, kills, ports.

A shape "2x2" is processes x devices per process.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from launch.runs.build import build_parts
from mnm_jax.training import read_metrics, train
from tests.two_processes import free_port

ROOT = pathlib.Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data" / "babi"


def tiny(steps, **training):
    """Returns a recipe that trains in seconds."""
    model = {"name": "mnm-p", "hidden_features": 4, "memory_features": 4, "memory_layers": 1}
    fixed = {"steps": steps, "batch_size": 8, "learning_rate": 0.01, "seeds": 2, "log_every": 1, "eval_every": 100}
    return {
        "task": {"name": "dictionary", "support": 2, "queries": 1, "evaluation_batches": 2, "wider": False},
        "model": model,
        "training": fixed | training,
    }


class Run:
    """Runs `launch.train` in several processes; leaving the `with` block ends those that still run."""

    def __init__(self, workdir, shape, config):
        recipe = workdir.parent / f"{workdir.name}.py"
        recipe.write_text(
            f"import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({config})\n"
        )
        count, devices = map(int, shape.split("x"))
        own = {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_NUM_CPU_DEVICES": str(devices), "PJRT_NPROC": str(2 * devices)}
        environment = os.environ | own
        command = [sys.executable, "-m", "launch.train", f"--config={recipe}", f"--workdir={workdir}"]
        self.port = free_port()
        if count > 1:
            command += [f"--coordinator=127.0.0.1:{self.port}", f"--num_processes={count}"]
        self.workdir, self.processes = workdir, []
        for index in range(count):
            own = [f"--process_id={index}"] if count > 1 else []
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            self.processes.append(subprocess.Popen(command + own, cwd=ROOT, env=environment, **pipes))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def wait(self):
        """Returns (exit code, output) of each process."""
        said = [process.communicate(timeout=300)[0] for process in self.processes]
        return [(process.returncode, text) for process, text in zip(self.processes, said, strict=True)]

    def finish(self):
        """Returns the metrics of a run that ends without an error."""
        for code, text in self.wait():
            assert code == 0, text
        return read_metrics(self.workdir)

    def wait_for_checkpoint(self, after=0):
        """Waits for a checkpoint after a given step and returns its step."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            steps = [int(path.name) for path in self.workdir.glob("checkpoints/*") if path.name.isdigit()]
            if steps and max(steps) > after:
                return max(steps)
            time.sleep(0.01)
        raise AssertionError(self.wait())


def train_here(config, workdir, count):
    """Trains in this process, on some of its devices, and returns the metrics."""
    task, make_model, training = build_parts(config)
    train(task, make_model, training, workdir, devices=jax.devices()[:count])
    return read_metrics(workdir)


def without_seconds(lines):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_close(actual, expected, rtol=0.0, atol=0.0):
    assert [line.keys() for line in actual] == [line.keys() for line in expected]
    for one, other in zip(without_seconds(actual), without_seconds(expected), strict=True):
        for name, value in other.items():
            np.testing.assert_allclose(one[name], value, rtol=rtol, atol=atol, err_msg=f"{name}, {other['step']}")


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the bAbI data in {DATA}")
def test_two_processes_with_two_devices_each_train_babi_as_one_does(tmp_path):
    config = tiny(4, batch_size=16, seeds=1)
    config["task"] = {"name": "babi", "data_dir": str(DATA), "size": "1k", "tasks": (1,), "max_sentences": 10}
    config["task"] |= {"embedding_features": 8}
    config["model"] = {"name": "lstm", "hidden_features": 4}
    with Run(tmp_path / "two", "2x2", config) as two:
        expected = train_here(config, tmp_path / "one", 1)
        found = two.finish()
    assert [line["step"] for line in expected] == [1, 2, 3, 4, 4, 4]
    assert len({line["train/loss"][0] for line in expected if "train/loss" in line}) == 4
    assert_close(found, expected, atol=1e-5)
    recorded = json.loads((tmp_path / "two" / "summary.json").read_text())["config"]
    assert recorded.pop("folder") == str(tmp_path)  # that of the recipe
    assert recorded == json.loads(json.dumps(config))
    assert (tmp_path / "two" / "params.npz").is_file()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Returns a workdir that two processes left at step 3, and the metrics of 6 steps in this process."""
    folder = tmp_path_factory.mktemp("hosts")
    with Run(folder / "three", "2x2", tiny(3)) as run:
        six = train_here(tiny(6), folder / "six", 4)
        assert_close(run.finish()[:3], six[:3], rtol=1e-5)
    return folder / "three", six


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8])
def test_a_checkpoint_of_two_processes_goes_on_in_one(uninterrupted, tmp_path, count):
    three, six = uninterrupted
    workdir = shutil.copytree(three, tmp_path / "run")
    assert_close(train_here(tiny(6), workdir, count)[-5:], six[-5:], rtol=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_in_four(uninterrupted, tmp_path):
    three, six = uninterrupted
    workdir = shutil.copytree(three, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(config | {"training": config["training"] | {"steps": 6}}))
    with Run(workdir, "4x1", tiny(6)) as run:
        assert_close(run.finish()[-5:], six[-5:], rtol=1e-5)


@pytest.mark.slow
def test_a_signal_and_a_kill_lose_no_step_after_the_last_checkpoint_and_change_no_number(tmp_path):
    workdir, config = tmp_path / "run", tiny(128, checkpoint_seconds=0.1)
    config["model"] = {"name": "lstm", "hidden_features": 4}

    def start(workdir):
        return Run(workdir, "2x2", config)

    with start(tmp_path / "whole") as run:
        whole = run.finish()
    with start(workdir) as run:
        first = run.wait_for_checkpoint()
        run.processes[1].send_signal(signal.SIGTERM)
        ends = run.wait()
    assert [code for code, _ in ends] == [130, 130], ends
    assert "stopped by a signal to another process at update " in ends[0][1]
    assert f"stopped by SIGTERM at update {(stopped := run.wait_for_checkpoint())} of 128" in ends[1][1]
    with start(workdir) as run:
        killed = run.wait_for_checkpoint(after=stopped)
        run.processes[1].kill()
        run.processes[0].kill()  # as a launcher does when one of its processes has ended
    with start(workdir) as run:
        assert_close(run.finish(), whole)
    assert first <= stopped < killed < 128


@pytest.mark.slow
def test_a_run_on_one_machine_listens_on_the_loopback_interface_only(tmp_path, listening):
    config = tiny(10**6, checkpoint_seconds=0.1)
    config["model"] = {"name": "lstm", "hidden_features": 4}
    with Run(tmp_path / "run", "2x1", config) as run:
        run.wait_for_checkpoint()
        found = listening(*(process.pid for process in run.processes))
    assert run.port in {port for _, port in found}
    # JAX's collectives on CPUs listen at the address of the machine's own name; JAX has no setting for it.
    own = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    assert not [ip for ip, port in found if not ip.is_loopback and (port == run.port or str(ip) not in own)]
