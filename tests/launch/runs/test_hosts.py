"""Tests runs of several real processes on one machine: same numbers as one process, resuming, signals and kills.

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
import threading
import time

import jax
import numpy as np
import pytest

from launch.runs.build import build_parts
from launch.runs.connect import connect, meet
from mnm_jax.training import read_metrics, train

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


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


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


def test_connect_says_how_many_came_and_who_is_missing():
    port, errors = free_port(), {}

    def come(process_id):
        try:
            meet(f"127.0.0.1:{port}", 4, process_id, timeout=1.0, listen=f"127.0.0.1:{port}")
        except TimeoutError as error:
            errors[process_id] = str(error)

    threads = [threading.Thread(target=come, args=(process_id,)) for process_id in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors[0].startswith(
        f"2 of 4 processes came within 1 s to process 0, which listened at 127.0.0.1:{port}; missing: 1, 3. "
    )
    assert "raise --coordinator_timeout" in errors[0] and "raise --coordinator_timeout" in errors[2]
    assert errors[2].startswith(f"process 2 waited 1 s for process 0 at 127.0.0.1:{port}")


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n", b"[1]"])
def test_all_who_come_meet_and_a_stranger_counts_as_nobody(said):
    port, through = free_port(), []

    def come(process_id):
        meet(f"127.0.0.1:{port}", 3, process_id, timeout=20.0)
        through.append(process_id)

    threads = [threading.Thread(target=come, args=(process_id,)) for process_id in (1, 0)]
    for thread in threads:
        thread.start()
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(said)
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    time.sleep(0.3)
    assert through == []
    come(2)
    for thread in threads:
        thread.join()
    assert sorted(through) == [0, 1, 2]


@pytest.fixture
def initialized(monkeypatch):
    """Returns the arguments of the calls of `jax.distributed.initialize`, which is not run."""
    for name in [name for name in os.environ if name.startswith(("JAX_COORDINATOR", "SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_process_0_listens_at_the_named_address_only(initialized, host):
    port = free_port()
    named = f"{host}:{port}"
    threads = [threading.Thread(target=connect, args=(named, 2, process_id, 20)) for process_id in (0, 1)]
    threads[0].start()
    time.sleep(0.3)
    with pytest.raises(ConnectionRefusedError):  # on all interfaces it would also listen here
        socket.create_connection(("127.0.0.2", port)).close()
    threads[1].start()
    for thread in threads:
        thread.join()
    binds = {args[2]: kwargs.pop("coordinator_bind_address") for args, kwargs in initialized}
    assert binds == {0: named, 1: None}
    assert {args[:2] for args, _ in initialized} == {(named, 2)}
    others = {"initialization_timeout": 20, "cluster_detection_method": "deactivate"}
    assert [kwargs for _, kwargs in initialized] == 2 * [others]


def test_the_address_where_process_0_listens_can_be_another(initialized, monkeypatch):
    ports = free_port(), free_port()
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", f"localhost:{ports[1]}")
    connect(f"host.invalid:{ports[0]}", 1, 0)
    ((args, kwargs),) = initialized
    assert args == (f"host.invalid:{ports[0]}", 1, 0)
    assert kwargs["coordinator_bind_address"] in (f"127.0.0.1:{ports[1]}", f"[::1]:{ports[1]}")


def test_an_address_where_process_0_cannot_listen_is_named_with_the_remedy():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1:{port}: Address already .*Take another port"):
            connect(f"127.0.0.1:{port}", 2, 0)
    remedy = "Name an address of the machine of process 0, or set JAX_COORDINATOR_BIND_ADDRESS=HOST:PORT"
    with pytest.raises(OSError, match=f"cannot listen at 203.0.113.1:12345: .*{remedy}"):  # an address of examples
        connect("203.0.113.1:12345", 2, 0)


def in_slurm(monkeypatch, job, tasks, process_id):
    named = {"JOB_ID": job, "STEP_NODELIST": "127.0.0.1", "NTASKS": tasks, "PROCID": process_id, "LOCALID": 0}
    for name, value in named.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


def test_auto_uses_the_documented_port_and_names_who_is_missing(initialized, monkeypatch):
    with pytest.raises(ValueError, match="needs the environment of a TPU pod, SLURM, Open MPI or Kubernetes, got none"):
        connect("auto", None, None)
    in_slurm(monkeypatch, job=4096 + 77, tasks=3, process_id=0)
    message = "1 of 3 processes came within 0.1 s to process 0, which listened at .*:61517; missing: 1, 2"
    with pytest.raises(TimeoutError, match=message):
        connect("auto", None, None, 0.1)
    assert initialized == []
    in_slurm(monkeypatch, job=4096 + 77, tasks=1, process_id=0)
    connect("auto", None, None, 5)
    others = {"coordinator_bind_address": None, "cluster_detection_method": "deactivate"}
    assert initialized == [(("127.0.0.1:61517", 1, 0), {"initialization_timeout": 5} | others)]
    monkeypatch.setenv("JAX_COORDINATOR_PORT", str(port := free_port()))
    connect("auto", None, None)
    assert initialized[-1][0] == (f"127.0.0.1:{port}", 1, 0)
    with pytest.raises(ValueError, match="got num_processes=2, process_id=0; leave them out"):
        connect("auto", 2, 0)


@pytest.mark.parametrize(
    ("environment", "visible"),
    [
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, "all"),
        ({"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "1,2(x3)"}, "1"),
        ({"SLURM_LOCALID": "0", "JAX_LOCAL_DEVICE_IDS": "2,3"}, "2,3"),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "all"),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "1"),
    ],
)
def test_a_process_uses_all_gpus_of_its_machine_unless_it_shares_the_machine(environment, visible):
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    ompi = {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "1"}
    ompi |= {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    job = slurm if "SLURM_LOCALID" in environment else ompi
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_", "JAX_COORD"))}
    program = "from launch.runs.connect import connect; connect('auto', None, None); "
    program += "from jax._src import xla_bridge; print(xla_bridge.CUDA_VISIBLE_DEVICES.value)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=kept | job | environment | {"JAX_COORDINATOR_PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == (f"{visible}\n", 0), done.stderr


def test_the_documented_ports_are_those_of_jax():
    from jax._src.clusters import cloud_tpu_cluster, k8s_cluster

    assert (cloud_tpu_cluster.coordinator_port, k8s_cluster.K8sCluster._coordinator_port) == ("8482", "55527")
    assert "8482 on Cloud TPUs, 55527 on Kubernetes" in " ".join(connect.__doc__.split())


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


@pytest.mark.slow
def test_the_command_names_a_host_that_is_missing_in_slurm(tmp_path, monkeypatch):
    in_slurm(monkeypatch, job=free_port(), tasks=2, process_id=0)
    command = [sys.executable, "-m", "launch.train", "--config=launch/configs/dictionary.py", f"--workdir={tmp_path}"]
    command += ["--coordinator=auto", "--coordinator_timeout=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "1 of 2 processes came within 1 s" in done.stderr and "missing: 1. " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, None), "num_processes and process_id need a coordinator"),
        (("host", 2, 0), "coordinator must be HOST:PORT with a port from 1 to 65535, .* or auto, got 'host'"),
        ((":12", 2, 0), "coordinator must be HOST:PORT .* got ':12'"),
        (("host:0", 2, 0), "coordinator must be HOST:PORT .* got 'host:0'"),
        (("host:70000", 2, 0), "coordinator must be HOST:PORT .* got 'host:70000'"),
        (("::1:12", 2, 0), r"an IPv6 address in brackets as .::1.:PORT, or auto, got '::1:12'"),
        (("host:12", 2, 0, 0), "timeout must be > 0, got 0"),
        (("host:12", 2, 2), r"process_id from 0 to num_processes - 1, got num_processes=2, process_id=2"),
        (("host:12", None, 0), "got num_processes=None, process_id=0"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        connect(*arguments)
    assert "\n" not in str(error.value)


def test_without_a_coordinator_there_is_nothing_to_join():
    connect(None, None, None)
    assert jax.process_count() == 1
