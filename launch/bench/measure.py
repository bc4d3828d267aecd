"""How a benchmark measures: what is compared is compiled, warmed once, and then run turn by turn."""

import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

Row = dict[str, Any]

_REPEATS, _REPEATS_OF_LONG = 5, 3
_MOST_REPEATS = 20
_LONG = 10.0  # seconds
_ENOUGH = 10.0  # seconds of the slowest one, after which more repeats than the fewest are not worth the wait
# What a machine has besides a step's temporary memory: arguments, results, and the programs themselves.
_SHARE = 0.7


class Program(NamedTuple):
    """A step ready to run.

    run: one step, which is over when it returns. temp_bytes: of temporary memory, on all devices together.
    compile_seconds: with tracing. Both are None where they are not known.
    """

    run: Callable[[], Any]
    temp_bytes: int | None = None
    compile_seconds: float | None = None


class Candidate(NamedTuple):
    """One of those compared. fields: what tells its row from all others. about: said in the row besides."""

    fields: Mapping[str, Any]
    prepare: Callable[[], Program]
    about: Mapping[str, Any] = {}


class Group(NamedTuple):
    """What is measured turn by turn, and what is then worked out from its rows."""

    candidates: Sequence[Candidate]
    finish: Callable[[list[Row]], list[Row]]


def compile_program(function: Callable, args: Sequence[Any], devices: int) -> Program:
    """The program of a pure function whose arguments already lie on its devices."""
    begin = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - begin
    analysis = compiled.memory_analysis()
    # The compiler tells the bytes of one device, and each of them needs as many.
    temp_bytes = None if analysis is None else analysis.temp_size_in_bytes * devices
    return Program(lambda: jax.block_until_ready(compiled(*args)), temp_bytes, seconds)


def rest() -> None:
    """Waits until the system has taken back the pages that the step before has given up.

    It does so while the next one runs already: a quarter of the time of the reversible form would be plain's.
    """
    time.sleep(0.25)


def measure(
    candidates: Sequence[Candidate],
    *,
    memory_bytes: int | None,
    clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[], None] = rest,
) -> list[Row]:
    """The rows of candidates, in their order.

    A row: the fields, `about`, milliseconds (median), spread ((max - min) / median), repeats, temp_bytes,
    compile_seconds, note. What does not fit into memory has None for milliseconds and spread, and a note.

    Args:
        memory_bytes: of the machine; a step that needs more than 70% of it is not run. None: not known.
        clock: seconds.
        pause: called before each run that is timed.
    """
    rows, runs, warm = [], {}, []
    for place, candidate in enumerate(candidates):
        row = {**candidate.fields, **candidate.about, "milliseconds": None, "spread": None, "repeats": 0}
        row |= {"temp_bytes": None, "compile_seconds": None, "note": None}
        rows.append(row)
        try:
            program = candidate.prepare()
            row |= {"temp_bytes": program.temp_bytes, "compile_seconds": program.compile_seconds}
            if memory_bytes is not None and (program.temp_bytes or 0) > _SHARE * memory_bytes:
                needed, there = (f"{size / 2**30:.1f} GiB" for size in (program.temp_bytes, memory_bytes))
                row["note"] = f"not run: needs {needed} of temporary memory, more than {_SHARE:.0%} of {there}"
                continue
            warm.append(_seconds(program.run, clock))
            runs[place] = program.run
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            row["note"] = "out of memory"
    seconds = {place: [] for place in runs}
    for _ in range(_repeats(max(warm, default=0.0))):
        for place, run in runs.items():
            pause()
            seconds[place].append(_seconds(run, clock))
    for place, times in seconds.items():
        median = statistics.median(times)
        spread = (max(times) - min(times)) / median
        rows[place] |= {"milliseconds": 1e3 * median, "spread": spread, "repeats": len(times)}
    return rows


def with_ratios(rows: list[Row], field: str, reference: str) -> list[Row]:
    """Rows with ratio_to_REFERENCE, how many times faster than the row whose `field` is the reference, and
    memory_ratio_to_REFERENCE, how many times less temporary memory; None where one of the two is not known."""
    base = next((row for row in rows if row[field] == reference), {})

    def ratio(row: Row, name: str) -> float | None:
        return base[name] / row[name] if base.get(name) and row[name] else None

    names = {f"ratio_to_{reference}": "milliseconds", f"memory_ratio_to_{reference}": "temp_bytes"}
    return [row | {new: ratio(row, name) for new, name in names.items()} for row in rows]


def _repeats(slowest: float) -> int:
    if slowest > _LONG:
        return _REPEATS_OF_LONG
    return min(_MOST_REPEATS, max(_REPEATS, math.floor(_ENOUGH / max(slowest, 1e-9))))


def _seconds(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    begin = clock()
    run()
    return clock() - begin


def _out_of_memory(error: Exception) -> bool:
    # XLA and PyTorch report it as a RuntimeError like any other.
    told = re.search("RESOURCE_EXHAUSTED|out of memory|can't allocate memory", str(error), re.IGNORECASE)
    return isinstance(error, MemoryError) or told is not None
