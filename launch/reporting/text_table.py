"""Plain tables: the metrics of one run, and rows as aligned text or as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "-"


def format_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns one line per metric: its name, then mean +- standard deviation over the seeds."""
    width = max(map(len, ["metric", *summary]))
    seeds = max((len(row["per_seed"]) for row in summary.values()), default=0)
    rows = [f"{name:<{width}}  {show(row['mean'])} +- {show(row['std'])}" for name, row in summary.items()]
    return "\n".join([f"{'metric':<{width}}  mean +- std of {seeds} seed{'s' * (seeds != 1)}", *rows])


def format_columns(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns rows as aligned text under a line of column names; a cell that a row lacks is "-"."""
    lines = _lines(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def format_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns rows as a Markdown table; a cell that a row lacks is "-"."""
    lines = [[cell.replace("+-", "±").replace("|", r"\|") for cell in line] for line in _lines(rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(value: float | None) -> str:
    """Returns a metric with four decimals, or "not finite" for None."""
    return "not finite" if value is None else f"{value:.4f}"


def _lines(rows: Sequence[Mapping[str, str]]) -> list[list[str]]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [columns, *([row.get(column, ABSENT) for column in columns] for row in rows)]
