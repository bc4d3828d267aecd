"""Runs one benchmark suite: measures the rows that its file does not have yet, prints, writes and draws them."""

import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from launch.bench.header import count_memory, make_header
from launch.bench.measure import Row, measure, rest
from launch.bench.suites import SUITES
from launch.runs.workdir import write_json
from mnm_jax._checks import check_choice

_IDENTITY = ("suite", "device", "versions", "environment")  # all rows of one file agree in these


def run(
    suite: str,
    out: str | os.PathLike,
    *,
    devices: Sequence[jax.Device] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[], None] = rest,
    **sizes: Any,
) -> dict[str, Any]:
    """Measures the missing rows of a file, prints a line per row, draws the figure and returns the file's content.

    The content is the header (see `make_header`) and rows (see `measure`). The file is written after every group.

    Args:
      suite: a key of `SUITES`.
      out: the JSON file; the figure is written beside it.
      devices: the devices to use; all if None.
      clock: returns seconds, see `measure`.
      pause: called before each timed run, see `measure`.
      **sizes: sizes that replace the suite's defaults, see its function.

    Raises:
      ValueError: if the suite is unknown, the name does not end in .json, or the file is damaged or holds rows of
        another suite, device, version or environment.
    """
    check_choice("suite", suite, SUITES)
    out = pathlib.Path(out)
    if out.suffix != ".json":
        raise ValueError(f"out must end in .json, got {str(out)!r}; the figure will have its name with .png.")
    devices = list(devices or jax.devices())
    report = make_header(suite, devices)
    rows = report["rows"] = _read_rows(out, report)
    out.parent.mkdir(parents=True, exist_ok=True)
    for group in SUITES[suite].groups(devices, **sizes):
        keys = [candidate.fields for candidate in group.candidates]
        if all(any(_matches(row, key) for row in rows) for key in keys):
            continue
        memory = count_memory(devices)
        measured = group.finish(measure(group.candidates, memory_bytes=memory, clock=clock, pause=pause))
        # A ratio compares rows of one measurement, so older rows of the group are replaced.
        rows = [row for row in rows if not any(_matches(row, key) for key in keys)] + measured
        report["rows"] = rows
        write_json(out, report)
        for row, key in zip(measured, keys, strict=True):
            print(_line(row, key), flush=True)
    if not rows:
        raise ValueError(f"suite {suite} has nothing to measure with these sizes: {sizes}.")
    device = report["device"]
    title = f"{suite.replace('_', ' ')}: {device['devices']} x {device['kind']}, jax {report['versions']['jax']}"
    SUITES[suite].draw(rows, out.with_suffix(".png"), title)
    return report


def _read_rows(out: pathlib.Path, header: Mapping[str, Any]) -> list[Row]:
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


def _matches(row: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
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
