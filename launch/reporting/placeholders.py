"""Placeholders in texts and claims, which the report replaces with numbers of runs.

    {{SOURCE: FIELD}}             a number of a run, or of the rows of a file
    {{SOURCE: FIELD | FORMAT}}    the same, formatted
    {{table FILE ...: COLUMNS}}   a table of the rows of a benchmark file

SOURCE is one of

- the place of a run in its section, `copy/mnm-p`. Seeds that were trained separately count as one run; the place of one
  of them is `15_epochs/chain-p/seed_0`;
- a file of the section and conditions on its rows, `training_step.json form=auto heads=1`: the rows of a benchmark
  file, the items of a JSON list, or the lines of a `.jsonl` file;
- two of these, `A - B` or `A / B`: difference or quotient of their means.

FIELD of a run is a metric, `test/accuracy`, or a pattern for several metrics, `test/task=*/error`; a metric followed by
` at UPDATE` is its value on the learning curve. Without a FORMAT it may be a column of the table that compares runs,
such as `updates to 90%`. FIELD of a file is a key of its rows; dots separate nested keys,
`settings.model.memory_layers`.

FORMAT is a statistic followed by a Python format specification, `mean .1%`. The statistic is `mean`, `std`, `min`,
`max` or `above LEVEL` (how many values are larger, as in "2 of 5"); without a statistic, several values are shown as
mean ± sample standard deviation. The default specification is `.4f`.
"""

import fnmatch
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from launch.reporting.benchmark_table import benchmark_table
from launch.reporting.table import compare
from launch.runs.finished import Run

_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_STATISTICS: dict[str, Callable[[np.ndarray], Any]] = {
    "mean": np.mean,
    "min": np.min,
    "max": np.max,
    "std": lambda values: np.std(values, ddof=1),
}


class Section(NamedTuple):
    """A folder of runs and files that one page shows.

    Attributes:
      folder: the folder.
      runs: its finished runs, by place; includes joined runs and their members.
    """

    folder: pathlib.Path
    runs: Mapping[str, Run]


def fill(text: str, section: Section) -> str:
    """Returns the text with each placeholder filled from the section.

    Raises:
      ValueError: a placeholder names no run, no metric or no row, or is malformed; the message quotes it.
    """

    def replace(match: re.Match[str]) -> str:
        inner = " ".join(match[1].split())
        try:
            return _fill_one(inner, section)
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise ValueError(f"{section.folder}: cannot fill {{{{{inner}}}}}: {error}") from error

    return _PLACEHOLDER.sub(replace, text)


def find_rows(folder: pathlib.Path, selection: str) -> list[dict[str, Any]]:
    """Returns the rows of a file that fulfil all conditions.

    Args:
      folder: folder of the file.
      selection: name of the file and conditions, `training_step.json form=auto heads=1`.

    Raises:
      ValueError: there is no such file, or no such row.
    """
    name, *conditions = selection.split()
    path = folder / name
    if not path.is_file():
        raise ValueError(f"there is no file {name}")
    text = path.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    if isinstance(rows, dict):
        rows = rows["rows"]
    for condition in conditions:
        key, _, value = condition.partition("=")
        rows = [row for row in rows if str(row.get(key)).replace(" ", "_") == value]
    if not rows:
        raise ValueError(f"no row of {name} has {' '.join(conditions)}")
    return rows


def _fill_one(inner: str, section: Section) -> str:
    if ": " not in inner:
        raise ValueError("a placeholder is {{SOURCE: FIELD}} or {{SOURCE: FIELD | FORMAT}}")
    source, _, rest = inner.partition(": ")
    if source.startswith("table "):
        rows = find_rows(section.folder, source.removeprefix("table "))
        return benchmark_table(rows, [column.strip() for column in rest.split(",")])
    field, _, form = (part.strip() for part in rest.partition(" | "))
    if pair := re.fullmatch(r"(.+) ([-/]) (.+)", source):
        first, second = (float(np.mean(_values(section, one, field))) for one in (pair[1], pair[3]))
        return _format([first - second if pair[2] == "-" else first / second], form)
    if source in section.runs:
        columns = compare(section.runs[source].summary, section.runs[source].lines)
        if field in columns and not form:
            return columns[field].replace("+-", "±")
    return _format(_values(section, source, field), form)


def _values(section: Section, source: str, field: str) -> list[Any]:
    if re.match(r"\S+\.jsonl?(\s|$)", source):
        return [_lookup(row, field) for row in find_rows(section.folder, source)]
    return _run_values(section, source, field)


def _run_values(section: Section, place: str, field: str) -> list[float]:
    if place not in section.runs:
        raise ValueError(f"there is no run {place!r}; there are {', '.join(sorted(section.runs)) or 'none'}")
    run = section.runs[place]
    name, _, update = field.partition(" at ")
    if update:
        found = [line[name] for line in run.lines if line["step"] == int(update) and name in line]
        if not found:
            raise ValueError(f"the curve of {place} has no {name} at {update}")
        values = found[-1]
    elif name in ("seconds", "parameters"):
        values = [run.summary[name]]
    else:
        metrics = run.summary["metrics"]
        names = [metric for metric in metrics if fnmatch.fnmatchcase(metric, name)]
        if not names:
            raise ValueError(f"{place} has no metric {name}; it has {', '.join(metrics)}")
        values = [value for metric in names for value in metrics[metric]["per_seed"]]
    if None in values:
        raise ValueError(f"{name} of {place} is not finite")
    return values


def _lookup(row: Mapping[str, Any], key: str) -> Any:
    """Returns the value of a key; dots separate nested keys, and a key that itself contains dots is found as well."""
    if key in row:
        return row[key]
    for index in (match.start() for match in re.finditer(r"\.", key)):
        if isinstance(row.get(key[:index]), dict):
            return _lookup(row[key[:index]], key[index + 1 :])
    raise ValueError(f"no key {key!r}; there are {', '.join(row)}")


def _format(values: Sequence[Any], form: str) -> str:
    if len(values) == 1 and isinstance(values[0], str):
        return values[0]
    parts = re.fullmatch(r"(?:(mean|std|min|max)\b|above (\S+))?\s*(\S*)", form)
    if parts is None:
        raise ValueError(f"{form!r} is no format: a statistic, then a format such as .1%")
    statistic, level, spec = parts[1], parts[2], parts[3] or ".4f"
    numbers = np.asarray(values, np.float64)
    if level:
        limit = float(level.removesuffix("%")) / (100 if level.endswith("%") else 1)
        return f"{int(np.sum(numbers > limit))} of {numbers.size}"
    if statistic:
        return format(float(_STATISTICS[statistic](numbers)), spec)
    mean = format(float(numbers.mean()), spec)
    return mean if numbers.size == 1 else f"{mean} ± {format(float(numbers.std(ddof=1)), spec)}"
