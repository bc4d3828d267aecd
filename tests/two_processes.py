"""Runs a program in two processes of one run on this machine, each with two devices; finds a free port."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
_START = """
import json, pathlib
import jax
jax.distributed.initialize("127.0.0.1:{port}", 2, {index}, cluster_detection_method="deactivate")
folder, index, found = pathlib.Path({folder!r}), {index}, {{}}

def record(name, function):
    try:
        found[name] = function()
    except Exception as error:
        found[name] = f"{{type(error).__name__}}: {{error}}"
"""


def free_port() -> int:
    """Returns a port of this machine that no program uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def in_two_processes(program: str, folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the dictionary `found` of each process after a program, which begins with the names of `_START`."""
    port = free_port()
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PJRT_NPROC": "4", "TF_CPP_MIN_LOG_LEVEL": "3"}
    processes = []
    for index in range(2):
        code = _START.format(port=port, index=index, folder=str(folder)) + program + "\nprint(json.dumps(found))"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, **pipes))
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]
