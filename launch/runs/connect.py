"""Joins the processes of a run, on one machine or on many, before any of them uses its devices.

Process 0 listens on one port, first for `meet`, then for JAX's coordination service. Neither has a password or
encryption: every program that reaches the port can join the run.
"""

import contextlib
import errno
import json
import math
import os
import socket
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax

from mnm_jax._checks import check_positive

TIMEOUT = 300  # seconds
_BIND = "JAX_COORDINATOR_BIND_ADDRESS"  # JAX's variable for the address where process 0 listens
_GO, _REFUSED = b"go", b"refused: "  # replies of process 0
_PATIENCE = 5.0  # seconds in which others can come, before all are refused
_IN_USE = "Take another port, or end the program that uses it."
_NOT_HERE = f"Name an address of the machine of process 0, or set {_BIND}=HOST:PORT to the one where it listens."


class _Place(NamedTuple):
    """The place of this process in a run."""

    coordinator: str
    num_processes: int
    process_id: int


def connect(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float = TIMEOUT
) -> None:
    """Joins this process to a run and returns when all processes have joined; does nothing without a coordinator.

    Process 0 listens at the coordinator's address only, so that `127.0.0.1:PORT` cannot be reached from other machines.
    With "auto", where the address comes from the environment, it listens on all interfaces. The environment variable
    `JAX_COORDINATOR_BIND_ADDRESS=HOST:PORT` replaces the address where it listens.

    The port of "auto" is 8482 on Cloud TPUs, 55527 on Kubernetes, and 61440 + (job id modulo 4096) on SLURM and Open
    MPI. `JAX_COORDINATOR_PORT` replaces it.

    A process uses all GPUs of its machine. If SLURM or Open MPI starts several processes per machine, each uses the
    GPU of its number there. The environment variable `JAX_LOCAL_DEVICE_IDS=0,1` replaces either.

    Args:
      coordinator: HOST:PORT, where process 0 listens, with an IPv6 address in brackets as `[::1]:PORT`; "auto": all
        three arguments are found in the environment (a TPU pod, SLURM, Open MPI, Kubernetes).
      num_processes: number of processes.
      process_id: number of this process, from 0.
      timeout: seconds to wait for the others.

    Raises:
      ValueError: if the arguments do not fit together, or the environment of "auto" describes no run.
      OSError: if process 0 cannot listen at the address.
      TimeoutError: if a process does not connect in time; process 0 names the missing ones.
    """
    check_positive(timeout=timeout)
    given = num_processes is not None or process_id is not None
    if coordinator is None:
        if given:
            raise ValueError("num_processes and process_id need a coordinator: --coordinator=HOST:PORT, or auto.")
        return
    seconds = math.ceil(timeout)
    listen = os.environ.get(_BIND)
    if coordinator == "auto":
        if given:
            raise ValueError(
                "coordinator='auto' finds num_processes and process_id in the environment, got "
                f"{num_processes=}, {process_id=}; leave them out, or pass --coordinator=HOST:PORT."
            )
        place = _find_place(seconds)
        if place is None:
            jax.distributed.initialize(initialization_timeout=seconds)
            return
    else:
        _split(coordinator)
        if num_processes is None or process_id is None or not 0 <= process_id < num_processes:
            raise ValueError(
                "a coordinator needs num_processes, and process_id from 0 to num_processes - 1, "
                f"got {num_processes=}, {process_id=}."
            )
        place = _Place(coordinator, num_processes, process_id)
        listen = listen or coordinator
    meet(*place, timeout, listen)
    bind = _numeric(listen) if listen and place.process_id == 0 else None  # None: JAX listens on all interfaces
    jax.distributed.initialize(
        *place,
        initialization_timeout=seconds,
        coordinator_bind_address=bind,
        # JAX's detection gives a process of SLURM or Open MPI one device only, even where it is alone on its machine.
        cluster_detection_method=None if _share_machines() else "deactivate",
    )


def meet(coordinator: str, num_processes: int, process_id: int, timeout: float, listen: str | None = None) -> None:
    """Returns in every process once all have connected to process 0.

    Without it, JAX (0.10) aborts a process whose wait times out, with a C++ stack trace that names no missing process.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: number of processes.
      process_id: number of this process.
      timeout: seconds to wait for the others.
      listen: HOST:PORT where process 0 listens; None: the coordinator's port, on all interfaces.

    Raises:
      OSError: if process 0 cannot listen there.
      ValueError: if a process was started with another number of processes than process 0.
      TimeoutError: if a process does not connect in time.
    """
    deadline = time.monotonic() + timeout
    if process_id == 0:
        with _listen(coordinator, listen) as server:
            address = _join(*server.getsockname()[:2])
            missing = _receive(server, num_processes, deadline)
        if missing:
            raise TimeoutError(
                f"{num_processes - len(missing)} of {num_processes} processes came within {timeout:g} s to process "
                f"0, which listened at {address}; missing: {', '.join(map(str, sorted(missing)))}. Start them with the "
                "same --coordinator, look for their errors, or raise --coordinator_timeout."
            )
    elif not _announce(coordinator, num_processes, process_id, deadline):
        raise TimeoutError(
            f"process {process_id} waited {timeout:g} s for process 0 at {coordinator}, or for the processes that "
            "process 0 waits for; start them, check --coordinator and the firewall, or raise --coordinator_timeout."
        )


def _find_place(seconds: int) -> _Place | None:
    """Returns the place that JAX finds in the environment; None if this version of JAX has another interface for it.

    JAX exports no such function; without it a missing process aborts the others with JAX's stack trace.
    """
    try:
        from jax._src.clusters import ClusterEnv

        named = os.environ.get("JAX_COORDINATOR_ADDRESS")
        find = ClusterEnv.auto_detect_unset_distributed_params
        address, count, index = find(named, None, None, None, None, seconds)[:3]
    except (ImportError, AttributeError, TypeError):
        return None
    if address is None or count is None or index is None:
        raise ValueError(
            "coordinator='auto' needs the environment of a TPU pod, SLURM, Open MPI or Kubernetes, got none; pass "
            "--coordinator=HOST:PORT, --num_processes and --process_id."
        )
    return _Place(address, count, index)


def _share_machines() -> bool:
    """Returns whether SLURM or Open MPI runs several processes of this run on one machine."""
    if local := os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE"):
        return int(local) > 1
    counts = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(",")  # such as "2(x3),1"
    return max(int(count.partition("(")[0]) for count in counts) > 1


def _split(address: str) -> tuple[str, int]:
    """Returns host and port of HOST:PORT or [IPv6 ADDRESS]:PORT."""
    host, colon, port = address.rpartition(":")
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16 or (":" in host and inner == host):
        raise ValueError(
            f"coordinator must be HOST:PORT with a port from 1 to 65535, an IPv6 address in brackets as [::1]:PORT, or "
            f"auto, got {address!r}."
        )
    return inner, int(port)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _numeric(address: str) -> str:
    """Returns HOST:PORT with the IP address of the host, at which both `meet` and JAX's service listen."""
    return _join(*socket.getaddrinfo(*_split(address), type=socket.SOCK_STREAM)[0][4][:2])


def _listen(coordinator: str, listen: str | None) -> socket.socket:
    """Returns a socket that listens at `listen`, or for None at the coordinator's port on all interfaces."""
    dual = socket.has_dualstack_ipv6()
    everywhere = _join("::" if dual else "0.0.0.0", _split(coordinator)[1])
    try:
        family, _, _, _, address = socket.getaddrinfo(*_split(listen or everywhere), type=socket.SOCK_STREAM)[0]
        is_ipv6 = family == socket.AF_INET6
        return socket.create_server(address, family=family, dualstack_ipv6=is_ipv6 and dual)
    except OSError as error:
        remedy = _IN_USE if error.errno == errno.EADDRINUSE else _NOT_HERE
        raise OSError(f"process 0 cannot listen at {listen or everywhere}: {error.strerror}. {remedy}") from error


def _receive(server: socket.socket, num_processes: int, deadline: float) -> set[int]:
    """Waits for the other processes and replies to them once all have connected; returns the missing ones.

    A process sends its id and its number of processes.
    """
    missing, wrong = set(range(1, num_processes)), None
    with contextlib.ExitStack() as stack:
        guests = []
        while missing and time.monotonic() < deadline:
            server.settimeout(max(1e-3, deadline - time.monotonic()))
            # A time-out, or the ValueError or TypeError caused by another program that connects to the port.
            with contextlib.suppress(OSError, ValueError, TypeError):
                guest = stack.enter_context(server.accept()[0])
                guest.settimeout(5.0)
                process_id, count = json.loads(guest.recv(64))
                missing.discard(process_id)
                guests.append(guest)
                if count != num_processes:
                    wrong = f"process {process_id} has num_processes={count}, process 0 has {num_processes}"
                    deadline = min(deadline, time.monotonic() + _PATIENCE)
        if wrong:
            wrong += ": start all with one number."
            _reply(guests, _REFUSED + wrong.encode())
            raise ValueError(wrong)
        if not missing:
            _reply(guests, _GO)
    return missing


def _reply(guests: Sequence[socket.socket], reply: bytes) -> None:
    """Sends a reply to all guests; one that is gone notices by itself."""
    for guest in guests:
        with contextlib.suppress(OSError):
            guest.sendall(reply)


def _announce(coordinator: str, num_processes: int, process_id: int, deadline: float) -> bool:
    """Connects to process 0, retrying until it listens, and returns whether it has replied in time."""
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(_split(coordinator), timeout=5.0) as connection:
            connection.sendall(json.dumps([process_id, num_processes]).encode())
            connection.settimeout(max(1e-3, deadline - time.monotonic()))
            reply = connection.recv(1024)
            if reply == _GO:
                return True
            if reply.startswith(_REFUSED):
                raise ValueError(reply.removeprefix(_REFUSED).decode())
        time.sleep(0.2)
    return False
