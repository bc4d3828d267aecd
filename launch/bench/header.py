"""The header of a benchmark's file: where and with which versions it was measured."""

import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import flax
import jax
import jaxlib

import mnm_jax

# Environment variables, or their beginnings, that change times.
_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_", "PJRT_NPROC", "XLA_FLAGS")


def make_header(suite: str, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Returns suite, device (platform, kind, devices, cores), versions, environment, timing and command."""
    first = devices[0]
    kind = _processor() if first.platform == "cpu" else first.device_kind
    packages = {module.__name__: module.__version__ for module in (jax, jaxlib, flax, mnm_jax)}
    return {
        "suite": suite,
        "device": {"platform": first.platform, "kind": kind, "devices": len(devices), "cores": count_cores()},
        "versions": {"python": platform.python_version()} | packages,
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
        "timing": "warm",  # see `measure.measure`; files from before 2026-11-28 do not have it
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }


def count_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_memory(devices: Sequence[jax.Device]) -> int | None:
    """Returns the bytes of memory of all devices together, of the machine if they are cores; None if unknown."""
    if devices[0].platform != "cpu":
        stats = [device.memory_stats() or {} for device in devices]
        return sum(one.get("bytes_limit", 0) for one in stats) or None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in os.sysconf_names else None


def _processor() -> str:
    """Returns the name of the CPU, which on Linux Python's `platform` does not have."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
