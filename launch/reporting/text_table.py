"""Plain tables: the metrics of one run, and rows as aligned text or as Markdown."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "-"
_WIDTH = 120


def format_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns one line per metric: its name, then mean +- standard deviation over the seeds."""
    width = max(map(len, ["metric", *summary]))
    seeds = max((len(row["per_seed"]) for row in summary.values()), default=0)
    rows = [f"{name:<{width}}  {show(row['mean'])} +- {show(row['std'])}" for name, row in summary.items()]
    return "\n".join([f"{'metric':<{width}}  mean +- std of {seeds} seed{'s' * (seeds != 1)}", *rows])


def format_columns(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns rows as aligned text under a line of column names; a missing cell is "-"."""
    lines = _lines(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def format_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns rows as a Markdown table; a missing cell is "-"."""
    lines = [[cell.replace("+-", "±").replace("|", r"\|") for cell in line] for line in _lines(rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def wrap(text: str) -> str:
    """Returns Markdown with the lines of paragraphs and of list items filled to 120 characters.

    Code, tables, headings and pictures stay unchanged.

    Examples:
      >>> print(wrap("A line\\nand another.\\n\\n- an item\\n  of a list\\n- and one"))
      A line and another.
      <BLANKLINE>
      - an item of a list
      - and one
    """
    parts = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = ["\n\n".join(map(_wrap_block, part.split("\n\n"))) for part in parts[::2]]
    return "".join(parts)


def _wrap_block(block: str) -> str:
    if re.match(r"\n*(#|\||!\[|<|$)", block):
        return block
    lead = block[: len(block) - len(block.lstrip("\n"))]
    filled = []
    for item in re.split(r"\n(?=- )", block.strip("\n")):
        indent = "  " * item.startswith("- ")
        words = " ".join(item.split())
        filled.append(
            textwrap.fill(words, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        )
    return lead + "\n".join(filled) + block[len(block.rstrip("\n")) :]


def show(value: float | None) -> str:
    """Returns a metric with four decimals, or "not finite" for None."""
    return "not finite" if value is None else f"{value:.4f}"


def _lines(rows: Sequence[Mapping[str, str]]) -> list[list[str]]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [columns, *([row.get(column, ABSENT) for column in columns] for row in rows)]
