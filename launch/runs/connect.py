"""Joins the processes of a run, on one machine or on many, before any of them uses its devices."""

import contextlib
import json
import socket
import time

import jax

TIMEOUT = 300.0  # seconds


def connect(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float = TIMEOUT
) -> None:
    """Joins this process to a run and returns when all processes have joined; does nothing without a coordinator.

    Args:
      coordinator: HOST:PORT, where process 0 listens; "auto": all three arguments are found in the environment (a TPU
        pod, SLURM, Open MPI, Kubernetes), and a missing process surfaces as JAX's own time-out error.
      num_processes: number of processes.
      process_id: number of this process, from 0.
      timeout: seconds to wait for the others.

    Raises:
      ValueError: if the arguments do not fit together.
      TimeoutError: if a process does not connect in time; process 0 names the missing ones.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise ValueError("num_processes and process_id need a coordinator: --coordinator=HOST:PORT, or auto.")
        return
    if coordinator == "auto":
        jax.distributed.initialize(initialization_timeout=int(timeout))
        return
    host, colon, port = coordinator.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"coordinator must be HOST:PORT, or auto, got {coordinator!r}.")
    if num_processes is None or process_id is None or not 0 <= process_id < num_processes:
        raise ValueError(
            "a coordinator needs num_processes, and process_id from 0 to num_processes - 1, "
            f"got {num_processes=}, {process_id=}."
        )
    meet(host, int(port), num_processes, process_id, timeout)
    jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=int(timeout))


def meet(host: str, port: int, num_processes: int, process_id: int, timeout: float) -> None:
    """Returns in every process once all have connected to process 0.

    Without it, JAX (0.10) aborts a process whose wait times out, with a C++ stack trace that names no missing process.

    Raises:
      TimeoutError: if a process does not connect in time.
    """
    deadline = time.monotonic() + timeout
    if process_id == 0:
        missing = _receive(port, set(range(1, num_processes)), deadline)
        if missing:
            raise TimeoutError(
                f"{num_processes - len(missing)} of {num_processes} processes came within {timeout:.0f} s; missing: "
                f"{', '.join(map(str, sorted(missing)))}. Start them with the same --coordinator, and look for their "
                "errors."
            )
    elif not _announce(host, port, process_id, deadline):
        raise TimeoutError(
            f"process {process_id} waited {timeout:.0f} s for process 0 at {host}:{port}, or for the processes that "
            "process 0 waits for; start them, or check --coordinator and the firewall."
        )


def _receive(port: int, missing: set[int], deadline: float) -> set[int]:
    """Waits for the other processes and replies to them once all have connected; returns the missing ones."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port)))
        guests = []
        while missing:
            server.settimeout(max(1e-3, deadline - time.monotonic()))
            # A time-out, or the ValueError or TypeError caused by another program that connects to the port.
            with contextlib.suppress(OSError, ValueError, TypeError):
                guest = stack.enter_context(server.accept()[0])
                guest.settimeout(5.0)
                missing.discard(json.loads(guest.recv(64)))
                guests.append(guest)
            if missing and time.monotonic() >= deadline:
                return missing
        for guest in guests:
            guest.sendall(b"go")
    return missing


def _announce(host: str, port: int, process_id: int, deadline: float) -> bool:
    """Connects to process 0, retrying until it listens, and returns whether it has replied in time."""
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5.0) as connection:
            connection.sendall(json.dumps(process_id).encode())
            connection.settimeout(max(1e-3, deadline - time.monotonic()))
            if connection.recv(2) == b"go":
                return True
        time.sleep(0.2)
    return False
