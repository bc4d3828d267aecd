"""Joins the processes of a run, on one machine or on many, before any of them looks at its devices."""

import contextlib
import json
import socket
import time

import jax

TIMEOUT = 300.0  # seconds


def connect(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float = TIMEOUT
) -> None:
    """Makes this process one of a run's; returns when all have come. Nothing to do without a coordinator.

    Args:
        coordinator: HOST:PORT, where process 0 listens; "auto": all three are found in the environment (a TPU pod,
            SLURM, Open MPI, Kubernetes).
        num_processes, process_id: how many there are, and which of them this is, counted from 0.
        timeout: seconds to wait for the others.

    Raises:
        ValueError: numbers that do not fit together.
        TimeoutError: not all came in time; says how many did, and which are missing.
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
    meet((host, int(port)), num_processes, process_id, timeout)
    jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=int(timeout))


def meet(address: tuple[str, int], num_processes: int, process_id: int, timeout: float) -> None:
    """Returns in all processes when all have come to the address.

    JAX itself ends a process that waits in vain with a stack trace, and does not tell for whom it waited.

    Raises:
        TimeoutError: not all came in time.
    """
    deadline = time.monotonic() + timeout
    if process_id == 0:
        _receive(address, num_processes, deadline, timeout)
    else:
        _announce(address, process_id, deadline, timeout)


def _receive(address: tuple[str, int], num_processes: int, deadline: float, timeout: float) -> None:
    """Waits for all others, then tells each of them."""
    missing, guests = set(range(1, num_processes)), []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", address[1]), backlog=num_processes))
        while missing:
            server.settimeout(max(0.0, deadline - time.monotonic()) or 1e-3)
            try:
                guest = stack.enter_context(server.accept()[0])
                guest.settimeout(5.0)
                missing.discard(json.loads(guest.recv(64)))
                guests.append(guest)
            except (OSError, ValueError, TypeError) as error:  # the latter two: somebody else knocked
                if time.monotonic() >= deadline:
                    came = num_processes - len(missing)
                    names = ", ".join(map(str, sorted(missing)))
                    raise TimeoutError(
                        f"{came} of {num_processes} processes came within {timeout:.0f} s; missing: {names}. "
                        "Start them with the same --coordinator, and look for their errors."
                    ) from error
        for guest in guests:
            guest.sendall(b"go")


def _announce(address: tuple[str, int], process_id: int, deadline: float, timeout: float) -> None:
    """Tells process 0 that this one is here, as often as it takes to find it, and waits for its answer."""
    while True:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=5.0) as connection:
            connection.sendall(json.dumps(process_id).encode())
            connection.settimeout(max(1e-3, deadline - time.monotonic()))
            if connection.recv(2) == b"go":
                return
        if time.monotonic() >= deadline:
            raise TimeoutError(
                f"process {process_id} waited {timeout:.0f} s for process 0 at {address[0]}:{address[1]}, or for those "
                "whom it waits for; start it, or check --coordinator and the firewall."
            )
        time.sleep(0.2)
