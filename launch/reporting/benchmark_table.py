"""Benchmark files as tables and commands of a page."""

import json
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from launch.reporting.text_table import ABSENT, format_markdown

_NEEDED = {"suite", "device", "versions", "environment", "rows", "command"}

# Columns of a benchmark table: field of a row, heading and number format.
_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "against": ("against", str),
    "agent": ("agent", str),
    "driver": ("driver", str),
    "memory": ("memory", str),
    "pass": ("pass", str),
    "model": ("model", str),
    "rule": ("rule", str),
    "peer": ("peer", str),
    "mapping": ("seeds by", str),
    "form": ("form", str),
    "chosen": ("ran", str),
    "auto": ("auto", lambda chosen: "auto" if chosen else ""),
    "dtype": ("dtype", str),
    "heads": ("H", str),
    "steps": ("T", str),
    "batch": ("B", str),
    "width": ("d", str),
    "milliseconds": ("ms", "{:.1f}".format),
    "microseconds_per_step": ("us per step", "{:.0f}".format),
    "ratio_to_plain": ("times as fast as plain", "{:.2f}".format),
    "ratio_to_training": ("times as fast as training", "{:.2f}".format),
    "ratio_to_steps": ("times as fast as steps", "{:.1f}".format),
    "ratio_to_softmax attention": ("times as fast as attention", "{:.1f}".format),
    "ratio_to_torch.nn.LSTM": ("times as fast as torch", "{:.2f}".format),
    "ratio_to_xla": ("times as fast as xla", "{:.1f}".format),
    "ratio_to_map": ("times as fast as map", "{:.2f}".format),
    "kilosteps_per_second": ("thousand steps/s", "{:.1f}".format),
    "ratio_to_python": ("times as fast as python", "{:.1f}".format),
    "ratio_to_loop": ("times as fast as loop", "{:.1f}".format),
    "tokens_per_second": ("thousand tokens/s", lambda rate: f"{rate / 1e3:,.1f}"),
    "fraction_of_peak": ("of peak FLOP/s", "{:.1%}".format),
    "fraction_of_bandwidth": ("of peak bandwidth", "{:.1%}".format),
    "gradient_difference": ("gradient differs by", "{:.0e}".format),
    "temp_bytes": ("MiB", lambda size: f"{size / 2**20:.1f}"),
    "memory_ratio_to_plain": ("times less memory", "{:.1f}".format),
    "memory_ratio_to_steps": ("times less memory than steps", "{:.1f}".format),
    "peak_bytes": ("peak MiB", lambda size: f"{size / 2**20:.1f}"),
    "gflop_per_second": ("GFLOP/s", "{:.1f}".format),
    "fraction_of_product": ("of the product's rate", "{:.0%}".format),
    "compile_seconds": ("compile s", "{:.1f}".format),
    "spread": ("spread", "{:.0%}".format),
    "option": ("change", str),
    "updates": ("updates", "{:,}".format),
    "valid_bits": ("bits, validation", "{:.3f}".format),
    "valid_carried_bits": ("bits, state carried", "{:.3f}".format),
    "note": ("note", str),
}


def benchmark_parts(folder: pathlib.Path, link: str, without: Collection[str] = ()) -> list[str]:
    """Returns the Markdown of each benchmark file in a folder: name, device, figure, table and command.

    Args:
      folder: folder of the files.
      link: address of the folder, as seen from the page.
      without: names of files whose table and figure the page has elsewhere.

    Raises:
      ValueError: a file was not written by `launch.benchmark`.
    """
    parts = []
    for path, report in benchmark_files(folder).items():
        parts += [f"### {path.stem}", f"{_describe(report)}."]
        if path.name not in without:
            if path.with_suffix(".png").is_file():
                parts.append(f"![{path.stem}]({link}/{path.stem}.png)")
            parts.append(benchmark_table(report["rows"]))
        parts.append(f"```sh\n{report['command']}\n```")
    return parts


def benchmark_commands(folder: pathlib.Path, names: Collection[str]) -> str:
    """Returns the commands of some benchmark files of a folder, by device, as lines of a shell script."""
    commands: dict[str, list[str]] = {}
    for path, report in benchmark_files(folder).items():
        if path.name in names:
            commands.setdefault(f"# {_describe(report)}", []).append(benchmark_command(report))
    return "\n".join(line for device, own in commands.items() for line in [device, *dict.fromkeys(own)])


def benchmark_command(report: Mapping[str, Any]) -> str:
    """Returns the command of a benchmark file, with a new file below `runs/`: an existing one is not measured again."""
    return report["command"].replace("--out=results/", "--out=runs/")


def benchmark_files(folder: pathlib.Path) -> dict[pathlib.Path, dict[str, Any]]:
    """Returns the content of each JSON file of a folder.

    Raises:
      ValueError: a file was not written by `launch.benchmark`.
    """
    files = {}
    for path in sorted(folder.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(report, dict) or not report.keys() >= _NEEDED:
            raise ValueError(f"{path} is not a file of launch.benchmark.")
        files[path] = report
    return files


def benchmark_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Returns rows of a benchmark as a Markdown table.

    Args:
      rows: rows of a benchmark file.
      columns: fields to show; all that any row has, if empty.

    Raises:
      ValueError: a field that no table has.
    """
    unknown = sorted(set(columns) - _COLUMNS.keys())
    if unknown:
        raise ValueError(f"a benchmark table has no column {', '.join(unknown)}; it has {', '.join(_COLUMNS)}")
    shown = columns or [key for key in _COLUMNS if any(row.get(key) is not None for row in rows)]
    return format_markdown([{_COLUMNS[key][0]: _cell(key, row.get(key)) for key in shown} for row in rows])


def _cell(key: str, value: Any) -> str:
    return ABSENT if value is None else _COLUMNS[key][1](value)


def _describe(report: Mapping[str, Any]) -> str:
    device = report["device"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    environment = "".join(f"; {name}={value}" for name, value in report["environment"].items())
    return f"{device['devices']} x {device['kind']} ({device['cores']} cores); {versions}{environment}"
