"""Runs one benchmark suite: measures the rows that its file does not have yet, prints, writes and draws them."""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from launch.bench.header import count_memory, make_header
from launch.bench.measure import Row, measure, measure_one_by_one, rest
from launch.bench.suites import SUITES
from launch.reporting.benchmark_table import benchmark_table
from launch.runs.workdir import write_json
from mnm_jax._checks import check_choice
from mnm_jax._files import whole_file

_IDENTITY = ("suite", "device", "versions", "environment", "timing")  # all rows of one file agree in these
BUDGET = 400.0  # seconds of a quick suite
LATE = "not measured: out of time"  # a note that begins so names no fault: the row is measured at the next start


def run(
    suite: str,
    out: str | os.PathLike,
    *,
    devices: Sequence[jax.Device] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[], None] = rest,
    budget: float = BUDGET,
    **sizes: Any,
) -> dict[str, Any]:
    """Measures the missing rows of a file, prints a line per row, draws the figure and returns the file's content.

    The content is the header (see `make_header`) and rows (see `measure`). The file is written after every group, and
    by a quick suite after every row.

    Args:
      suite: a key of `SUITES`.
      out: the JSON file, or a folder for it; the figure is written beside it if matplotlib is installed.
      devices: the devices to use; all if None.
      clock: returns seconds, see `measure`.
      pause: called before each timed run, see `measure`.
      budget: seconds after which a quick suite starts no other group; the rest become rows with a note.
      **sizes: sizes that replace the suite's defaults, see its function.

    Raises:
      ValueError: if the suite is unknown, the name does not end in .json, or the file is damaged or holds rows of
        another suite, device, version, environment or timing.
    """
    check_choice("suite", suite, SUITES)
    groups, draw, quick = SUITES[suite]
    out = _file(suite, out)
    devices = list(devices or jax.devices())[: 1 if quick else None]
    report = make_header(suite, devices)
    report["rows"] = _read_rows(out, report)
    out.parent.mkdir(parents=True, exist_ok=True)
    if quick and getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(out.parent / "cache"))
    memory = count_memory(devices)
    end = clock() + budget if quick else math.inf
    late: list[Row] = []
    for group in groups(devices, **sizes):
        keys = [candidate.fields for candidate in group.candidates]
        missing = [c for c in group.candidates if not any(_matches(row, c.fields) for row in report["rows"])]
        if missing and clock() >= end:
            late += [{**candidate.fields, "milliseconds": None, "note": LATE} for candidate in missing]
        elif missing:
            # A ratio compares rows of one measurement, so older rows of the group are replaced.
            others = [row for row in report["rows"] if not any(_matches(row, key) for key in keys)]
            printed = 0
            measurements: Iterable[list[Row]] = (
                measure_one_by_one(group.candidates, memory_bytes=memory, clock=clock)
                if quick
                else [measure(group.candidates, memory_bytes=memory, clock=clock, pause=pause)]
            )
            for measured in measurements:  # the rows so far: after each candidate in a quick suite, else once
                report["rows"] = others + group.finish(measured)
                write_json(out, report)
                for row, key in list(zip(report["rows"][len(others) :], keys, strict=False))[printed:]:
                    print(_line(row, key), flush=True)
                printed = len(measured)
    if not report["rows"] + late:
        raise ValueError(f"suite {suite} has nothing to measure with these sizes: {sizes}.")
    if late:
        report["rows"] += late
        write_json(out, report)
        print(f"{len(late)} rows {LATE} ({budget:.0f} s); the same command resumes.", flush=True)
    if quick:
        with whole_file(out.with_suffix(".md")) as file:
            file.write(benchmark_table(report["rows"]) + "\n")
    device = report["device"]
    title = f"{suite.replace('_', ' ')}: {device['devices']} x {device['kind']}, jax {report['versions']['jax']}"
    try:
        draw(report["rows"], out.with_suffix(".png"), title)
    except ModuleNotFoundError as error:
        print(f"no figure: {error}", file=sys.stderr)
    return report


def _file(suite: str, out: str | os.PathLike) -> pathlib.Path:
    out = pathlib.Path(out)
    if out.is_dir() or not out.suffix:
        return out / f"{suite}.json"
    if out.suffix != ".json":
        raise ValueError(
            f"out must end in .json or be a folder, got {str(out)!r}; the figure will have its name with .png."
        )
    return out


def _read_rows(out: pathlib.Path, header: Mapping[str, Any]) -> list[Row]:
    if not out.exists():
        return []
    try:
        there = json.loads(out.read_text(encoding="utf-8"))
        rows = there["rows"]
        there.setdefault("timing", "cold")
        differing = [(name, there[name]) for name in _IDENTITY if there[name] != header[name]]
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{out} is no benchmark's file, or damaged; move it away, or take another --out.") from error
    for name, value in differing:
        found, here = json.dumps(value), json.dumps(header[name])
        raise ValueError(f"{out} is of another {name}: {found} there, {here} here; take another --out.")
    return [row for row in rows if not (row.get("note") or "").startswith("not measured")]


def _matches(row: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    return all(name in row and row[name] == value for name, value in key.items())


def _line(row: Mapping[str, Any], key: Mapping[str, Any]) -> str:
    name = " ".join(f"{field}={value}" for field, value in key.items() if value is not None)
    if row["milliseconds"] is None:
        return f"{name}: {row['note']}"
    parts = [f"{row['milliseconds']:.1f} ms", f"spread {row['spread']:.0%} of {row['repeats']}"]
    if row["temp_bytes"] is not None:
        parts.append(f"{row['temp_bytes'] / 2**20:,.1f} MiB")
    if row.get("tokens_per_second") is not None:
        parts.append(f"{row['tokens_per_second'] / 1e3:,.1f} thousand tokens/s")
    for field, value in row.items():
        if field.startswith("ratio_to_") and value is not None:
            parts.append(f"{value:.2f} times as fast as {field.removeprefix('ratio_to_')}")
    return f"{name}: {', '.join(parts)}"
