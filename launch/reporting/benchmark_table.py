"""Benchmark files as tables of RESULTS.md."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from launch.reporting.table import format_markdown

_NEEDED = {"suite", "device", "versions", "environment", "rows", "command"}

# Of the fields of a row those that a reader compares, with what they are called and how they are written.
_COLUMNS = {
    "against": ("against", str),
    "agent": ("agent", str),
    "driver": ("driver", str),
    "memory": ("memory", str),
    "pass": ("pass", str),
    "rule": ("rule", str),
    "peer": ("peer", str),
    "mapping": ("seeds by", str),
    "form": ("form", str),
    "chosen": ("ran", str),
    "heads": ("H", str),
    "steps": ("T", str),
    "batch": ("B", str),
    "width": ("d", str),
    "milliseconds": ("ms", "{:.1f}".format),
    "microseconds_per_step": ("us a step", "{:.0f}".format),
    "ratio_to_plain": ("times as fast as plain", "{:.2f}".format),
    "ratio_to_steps": ("times as fast as steps", "{:.1f}".format),
    "ratio_to_map": ("times as fast as map", "{:.2f}".format),
    "kilosteps_per_second": ("thousand steps/s", "{:.1f}".format),
    "ratio_to_python": ("times as fast as python", "{:.1f}".format),
    "ratio_to_loop": ("times as fast as loop", "{:.1f}".format),
    "temp_bytes": ("MiB", lambda size: f"{size / 2**20:.1f}"),
    "memory_ratio_to_plain": ("times less memory", "{:.1f}".format),
    "memory_ratio_to_steps": ("times less memory than steps", "{:.1f}".format),
    "gflop_per_second": ("GFLOP/s", "{:.1f}".format),
    "fraction_of_product": ("of the product's rate", "{:.0%}".format),
    "compile_seconds": ("compile s", "{:.1f}".format),
    "spread": ("spread", "{:.0%}".format),
    "note": ("note", str),
}


def benchmark_parts(folder: pathlib.Path, link: str) -> list[str]:
    """Markdown of each benchmark's file in a folder: device, figure, table, command. link: of the folder.

    Raises:
        ValueError: a file that is not of `launch.benchmark`.
    """
    parts = []
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(report, dict) or not report.keys() >= _NEEDED:
            raise ValueError(f"{path} is not a file of launch.benchmark.")
        device = report["device"]
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        environment = "".join(f"; {name}={value}" for name, value in report["environment"].items())
        parts.append(f"### {path.stem}")
        parts.append(f"{device['devices']} x {device['kind']} ({device['cores']} cores); {versions}{environment}.")
        if path.with_suffix(".png").is_file():
            parts.append(f"![{path.stem}]({link}/{path.stem}.png)")
        parts.append(format_markdown(_table(report["rows"])))
        parts.append(f"```sh\n{report['command']}\n```")
    return parts


def _table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    shown = [key for key in _COLUMNS if any(row.get(key) is not None for row in rows)]
    return [
        {_COLUMNS[key][0]: "-" if row.get(key) is None else _COLUMNS[key][1](row[key]) for key in shown} for row in rows
    ]
