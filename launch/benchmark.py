"""Measures time and memory, one suite at a time, and draws a figure.

    python -m launch.benchmark --suite=NAME --out=FILE.json

training_step  the forms of `mnm_jax.recurrence` against plain autodiff, over rules, heads and lengths
scaling        the form "auto" against the number of steps, the width and the number of heads
limit          rates of the forms beside that of a large matrix product
peers          the memory beside titans-pytorch, where that is installed
seeds          the dictionary recipe's training step, its seeds side by side and one after the other
maze           steps of the maze a second: one program of mazes, agent and update, and a loop in Python
block          the memory as a layer: a sequence in chunks, beside one token after the other

FILE.json is written again after each group of rows that are measured together, turn by turn; FILE.png shows it. The
same command goes on where it was cut off. On a CPU every core is a device, and they share the batch.
"""

import json
import os
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import jax
import jaxlib
from absl import app, flags

import mnm_jax
from launch.bench import figures as benchmark_figures
from launch.bench import suites as benchmark_suites
from launch.bench.layer import block
from launch.bench.maze import maze
from launch.bench.measure import Group, Row, measure, rest
from launch.bench.peers import peers
from launch.errors import one_line_errors, parse_flags
from launch.runs.workdir import write_json


class Suite(NamedTuple):
    """groups: `(devices, **sizes) -> groups`, what is measured. draw: `(rows, path, title)`, its figure."""

    groups: Callable[..., Iterator[Group]]
    draw: Callable[[Sequence[Row], pathlib.Path, str], None]


SUITES = {
    "training_step": Suite(benchmark_suites.training_step, benchmark_figures.draw_training_step),
    "scaling": Suite(benchmark_suites.scaling, benchmark_figures.draw_scaling),
    "limit": Suite(benchmark_suites.limit, benchmark_figures.draw_limit),
    "peers": Suite(peers, benchmark_figures.draw_peers),
    "seeds": Suite(benchmark_suites.seeds, benchmark_figures.draw_seeds),
    "maze": Suite(maze, benchmark_figures.draw_maze),
    "block": Suite(block, benchmark_figures.draw_block),
}
_IDENTITY = ("suite", "device", "versions", "environment")  # rows of one file agree in these
_TELLING = ("GLIBC_TUNABLES", "MALLOC_", "PJRT_NPROC", "XLA_FLAGS")  # variables, or their beginnings, that change times


def run(
    suite: str,
    out: str | os.PathLike,
    *,
    devices: Sequence[jax.Device] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[], None] = rest,
    **sizes: Any,
) -> dict[str, Any]:
    """Measures what `out` does not have yet and returns what it then holds; prints a line a row and draws the figure.

    report: suite, device (platform, kind, devices, cores), versions, environment (variables that change times),
    command, rows (see `measure`).

    Args:
        suite: a key of `SUITES`.
        out: the JSON file; the figure goes beside it.
        devices: all there are if None.
        clock, pause: see `measure`.
        sizes: others than the suite's own, see its function.

    Raises:
        ValueError: an unknown suite, a name that does not end in .json, or a file of another suite, device, version
            or environment.
    """
    if suite not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {suite!r}; give it as --suite=NAME.")
    out = pathlib.Path(out)
    if out.suffix != ".json":
        raise ValueError(f"out must end in .json, got {str(out)!r}; the figure will have its name with .png.")
    devices = list(devices or jax.devices())
    report = _header(suite, devices)
    report["rows"] = _rows_there(out, report)
    out.parent.mkdir(parents=True, exist_ok=True)
    for group in SUITES[suite].groups(devices, **sizes):
        keys = [candidate.fields for candidate in group.candidates]
        if all(any(_is_of(row, key) for row in report["rows"]) for key in keys):
            continue
        memory_bytes = _memory_bytes(devices)
        rows = group.finish(measure(group.candidates, memory_bytes=memory_bytes, clock=clock, pause=pause))
        # A ratio is that of one run: rows of the group from another one give way.
        kept = [row for row in report["rows"] if not any(_is_of(row, key) for key in keys)]
        report["rows"] = kept + rows
        write_json(out, report)
        for row, key in zip(rows, keys, strict=True):
            print(_line(row, key), flush=True)
    if not report["rows"]:
        raise ValueError(f"suite {suite} has nothing to measure with these sizes: {sizes}.")
    device = report["device"]
    title = f"{suite.replace('_', ' ')}: {device['devices']} x {device['kind']}, jax {report['versions']['jax']}"
    SUITES[suite].draw(report["rows"], out.with_suffix(".png"), title)
    return report


def _header(suite: str, devices: Sequence[jax.Device]) -> dict[str, Any]:
    first = devices[0]
    kind = _processor() if first.platform == "cpu" else first.device_kind
    device = {"platform": first.platform, "kind": kind, "devices": len(devices), "cores": _cores()}
    packages = {module.__name__: module.__version__ for module in (jax, jaxlib, flax, mnm_jax)}
    versions = {"python": platform.python_version()} | packages
    environment = {name: value for name, value in sorted(os.environ.items()) if name.startswith(_TELLING)}
    command = shlex.join(["python", *sys.orig_argv[1:]])
    return {
        "suite": suite,
        "device": device,
        "versions": versions,
        "environment": environment,
        "command": command,
    }


def _rows_there(out: pathlib.Path, header: Mapping[str, Any]) -> list[Row]:
    if not out.exists():
        return []
    try:
        there = json.loads(out.read_text(encoding="utf-8"))
        rows = there["rows"]
        differing = [(name, there[name]) for name in _IDENTITY if there[name] != header[name]]
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{out} is no benchmark's file, or damaged; move it away, or take another --out.") from error
    for name, value in differing:
        found, here = json.dumps(value), json.dumps(header[name])
        raise ValueError(f"{out} is of another {name}: {found} there, {here} here; take another --out.")
    return rows


def _is_of(row: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    return all(name in row and row[name] == value for name, value in key.items())


def _line(row: Mapping[str, Any], key: Mapping[str, Any]) -> str:
    name = " ".join(f"{field}={value}" for field, value in key.items() if value is not None)
    if row["milliseconds"] is None:
        return f"{name}: {row['note']}"
    parts = [f"{row['milliseconds']:.1f} ms", f"spread {row['spread']:.0%} of {row['repeats']}"]
    if row["temp_bytes"] is not None:
        parts.append(f"{row['temp_bytes'] / 2**20:,.1f} MiB")
    for field, value in row.items():
        if field.startswith("ratio_to_") and value is not None:
            parts.append(f"{value:.2f} times as fast as {field.removeprefix('ratio_to_')}")
    return f"{name}: {', '.join(parts)}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """The name of the CPU; on Linux Python itself does not know it."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes(devices: Sequence[jax.Device]) -> int | None:
    """Of all devices together; of the machine, where they are cores."""
    if devices[0].platform != "cpu":
        stats = [device.memory_stats() or {} for device in devices]
        return sum(one.get("bytes_limit", 0) for one in stats) or None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in os.sysconf_names else None


def main(argv: list[str]) -> None:
    with one_line_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; give --suite=NAME and --out=FILE.json.")
        jax.config.update("jax_num_cpu_devices", _cores())
        run(_SUITE.value, _OUT.value)


if __name__ == "__main__":
    _SUITE = flags.DEFINE_string("suite", None, f"One of {', '.join(SUITES)}.")
    _OUT = flags.DEFINE_string("out", None, "The JSON file; the figure goes beside it, as .png.")
    flags.mark_flags_as_required(["suite", "out"])
    app.run(main, flags_parser=parse_flags)
