"""Tests how the processes of a run are joined, which of them are missing, and where process 0 listens."""

import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from launch.runs.connect import connect, meet
from tests.two_processes import free_port

ROOT = pathlib.Path(__file__).parents[3]


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


def test_a_process_with_another_number_of_processes_ends_with_process_0():
    port, errors = free_port(), {}

    def come(process_id, count):
        try:
            meet(f"127.0.0.1:{port}", count, process_id, timeout=20.0)
        except (ValueError, TimeoutError) as error:
            errors[process_id] = str(error)

    threads = [threading.Thread(target=come, args=place) for place in ((0, 3), (1, 3), (2, 4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == dict.fromkeys(
        range(3), "process 2 has num_processes=4, process 0 has 3: start all with one number."
    )


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n", b"\x00\x00\x12\x04"])
def test_a_process_that_meets_a_stranger_at_the_port_tries_again(said):
    """Such as the service of the run before, which is about to end."""
    through = []
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        thread = threading.Thread(target=lambda: through.append(meet(f"127.0.0.1:{port}", 2, 1, timeout=20.0)))
        thread.start()
        with stranger.accept()[0] as guest:
            guest.sendall(said)
    meet(f"127.0.0.1:{port}", 2, 0, timeout=20.0)
    thread.join()
    assert through == [None]


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n", b"[1]", b"[[1],3]"])
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
