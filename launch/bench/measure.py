"""Timing of the benchmarks: candidates are compiled, run once to warm up, and then timed in turns or one by one.

In turns, a program shorter than the rest before it is timed by the second of two consecutive runs.
"""

import math
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

import jax

Row = dict[str, Any]

_REPEATS, _REPEATS_OF_LONG = 5, 3
_MOST_REPEATS = 20
_LONG = 10.0  # seconds
_ENOUGH = 10.0  # seconds of the slowest candidate; a faster one is repeated more often, up to _MOST_REPEATS
_REST = 0.25  # seconds, before each timed run
_ENOUGH_ALONE = 3.0  # seconds, after which a candidate that is timed alone is not repeated again
_LONGEST_NOTE = 200  # characters
_LONGEST_COMPILATION = 120.0  # seconds; the compilation of a kernel may take minutes and would use up the budget
_SHARE = 0.7  # of the machine's memory, for temporaries; the rest holds arguments, results and programs


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      run: runs it once and returns when it has finished.
      temp_bytes: temporary memory on all devices together; None if unknown.
      compile_seconds: time of tracing and compiling; None if unknown.
      inspect: returns further fields of the row from the result of a run; only `measure_one_by_one` calls it.
    """

    run: Callable[[], Any]
    temp_bytes: int | None = None
    compile_seconds: float | None = None
    inspect: Callable[[Any], Row] | None = None


class Candidate(NamedTuple):
    """One candidate of a comparison.

    Attributes:
      fields: names and values that identify its row in a file.
      prepare: compiles it.
      about: further fields of its row.
    """

    fields: Mapping[str, Any]
    prepare: Callable[[], Program]
    about: Mapping[str, Any] = {}


class Group(NamedTuple):
    """Candidates that are timed in turns.

    Attributes:
      candidates: the candidates.
      finish: adds ratios and rates to their rows.
    """

    candidates: Sequence[Candidate]
    finish: Callable[[list[Row]], list[Row]]


def compile_program(function: Callable, args: Sequence[Any], devices: int) -> Program:
    """Compiles a pure function for arguments that already lie on its devices."""
    compiled, temp_bytes, seconds = compile_timed(jax.jit(function), args, devices)
    return Program(lambda: jax.block_until_ready(compiled(*args)), temp_bytes, seconds)


def compile_timed(function: Any, args: Sequence[Any], devices: int) -> tuple[Callable, int | None, float]:
    """Returns a compiled function, its `temp_bytes` and its `compile_seconds`, see `Program`.

    Args:
      function: a function of `jax.jit`.
      args: its arguments, or their shapes.
      devices: number of devices.
    """
    begin = time.perf_counter()
    compiled = function.lower(*args).compile()
    seconds = time.perf_counter() - begin
    analysis = compiled.memory_analysis()
    # The compiler reports the bytes of one device, and every device needs them.
    return compiled, None if analysis is None else analysis.temp_size_in_bytes * devices, seconds


def keep_state(update: Callable[[Any], tuple[Any, Any]], state: Any) -> Callable[[], None]:
    """Returns a function that runs `update(state) -> (state, metrics)` once and keeps the state for its next run.

    An update donates the buffers of its state, so that it cannot run on the same state twice.
    """
    kept = [state]

    def run() -> None:
        kept[0], metrics = update(kept[0])
        jax.block_until_ready((kept[0], metrics))

    return run


def dividing(devices: Sequence[jax.Device], batch: int) -> Sequence[jax.Device]:
    """Returns the first devices, of the largest number that divides a batch."""
    return devices[: max(n for n in range(1, len(devices) + 1) if batch % n == 0)]


def rest() -> None:
    """Waits until the system has reclaimed the pages that the previous program freed.

    Without the wait the system reclaims them during the next program: a quarter of the time measured for the form
    "reversible" was caused by "plain".
    """
    time.sleep(_REST)


def measure(
    candidates: Sequence[Candidate],
    *,
    memory_bytes: int | None,
    clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[], None] = rest,
) -> list[Row]:
    """Returns the rows of candidates, in their order.

    A row holds the fields, `about`, milliseconds (median), spread ((max - min) / median), repeats, temp_bytes,
    compile_seconds and note. A candidate that does not fit into memory has a note instead of milliseconds and spread.

    Args:
      candidates: the candidates to time in turns.
      memory_bytes: memory of the machine; a program that needs more than 70% of it is not run. None: unknown.
      clock: returns seconds.
      pause: called before each timed run, or before the untimed run that warms up a short program.
    """
    rows: list[Row] = []
    runs: dict[int, Callable[[], Any]] = {}
    warm: list[float] = []
    for place, candidate in enumerate(candidates):
        row = _new_row(candidate)
        rows.append(row)
        try:
            program = candidate.prepare()
            if _fits(row, program, memory_bytes):
                warm.append(_seconds(program.run, clock))
                runs[place] = program.run
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            row["note"] = "out of memory"
    seconds: dict[int, list[float]] = {place: [] for place in runs}
    for _ in range(_repeats(max(warm, default=0.0))):
        for place, run in runs.items():
            pause()
            seconds[place].append(_seconds_when_warm(run, clock))
    for place, times in seconds.items():
        median = statistics.median(times)
        spread = (max(times) - min(times)) / median
        rows[place] |= {"milliseconds": 1e3 * median, "spread": spread, "repeats": len(times)}
    return rows


def measure_one_by_one(
    candidates: Sequence[Candidate],
    *,
    memory_bytes: int | None,
    clock: Callable[[], float] = time.perf_counter,
    longest_compilation: float = _LONGEST_COMPILATION,
) -> Iterator[list[Row]]:
    """Yields the rows measured so far, after each candidate.

    The candidates are compiled in parallel, and then each is run once to warm up and timed at most 5 times, which suits
    a device whose times hardly vary. Milliseconds is the minimum. A candidate that fails has the error as its note.

    Args:
      candidates: the candidates.
      memory_bytes: as in `measure`.
      clock: returns seconds.
      longest_compilation: seconds, from the common start of all compilations, after which a candidate that is not yet
        compiled is not timed and has a note. Its compilation continues while the others are timed.
    """
    prepared = [_in_background(candidate.prepare) for candidate in candidates]
    wait(prepared, longest_compilation)
    rows: list[Row] = []
    for candidate in candidates:
        row = _new_row(candidate)
        rows.append(row)
        try:
            compiled = prepared.pop(0)
            if not compiled.done():
                row["note"] = f"not measured: its compilation takes longer than {longest_compilation:g} s"
                yield list(rows)
                continue
            program = compiled.result()
            if _fits(row, program, memory_bytes):
                result = program.run()
                row |= program.inspect(result) if program.inspect else {}
                del result
                times: list[float] = []
                while len(times) < _REPEATS and sum(times) < _ENOUGH_ALONE:
                    times.append(_seconds(program.run, clock))
                best = min(times)
                row |= {"milliseconds": 1e3 * best, "spread": (max(times) - best) / best, "repeats": len(times)}
        except Exception as error:
            first_line = next(iter(str(error).strip().splitlines()), "")[:_LONGEST_NOTE]
            row["note"] = "out of memory" if _out_of_memory(error) else f"{type(error).__name__}: {first_line}"
        yield list(rows)


def _in_background(prepare: Callable[[], Program]) -> Future[Program]:
    """Starts a function in a thread and returns its future.

    The thread does not keep the process alive, since a compilation cannot be stopped.
    """
    future: Future[Program] = Future()

    def call() -> None:
        try:
            future.set_result(prepare())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def _new_row(candidate: Candidate) -> Row:
    unknown: Row = {"milliseconds": None, "spread": None, "repeats": 0}
    unknown |= {"temp_bytes": None, "compile_seconds": None, "note": None}
    return {**candidate.fields, **candidate.about, **unknown}


def _fits(row: Row, program: Program, memory_bytes: int | None) -> bool:
    """Returns whether a program fits into memory; adds its size and time of compilation, or a note, to its row."""
    row |= {"temp_bytes": program.temp_bytes, "compile_seconds": program.compile_seconds}
    needs = program.temp_bytes or 0
    if memory_bytes is None or needs <= _SHARE * memory_bytes:
        return True
    needed, there = (f"{size / 2**30:.1f} GiB" for size in (needs, memory_bytes))
    row["note"] = f"not run: needs {needed} of temporary memory, more than {_SHARE:.0%} of {there}"
    return False


def with_ratios(rows: list[Row], field: str, reference: str) -> list[Row]:
    """Returns the rows with two ratios to the row whose `field` is the reference.

    `ratio_to_REFERENCE` is the reference's time divided by the row's, `memory_ratio_to_REFERENCE` the same of temporary
    memory; None where one of the two numbers is unknown.
    """
    base = next((row for row in rows if row[field] == reference), {})

    def ratio(row: Row, name: str) -> float | None:
        return base[name] / row[name] if base.get(name) and row[name] else None

    names = {f"ratio_to_{reference}": "milliseconds", f"memory_ratio_to_{reference}": "temp_bytes"}
    return [row | {new: ratio(row, name) for new, name in names.items()} for row in rows]


def _repeats(slowest: float) -> int:
    if slowest > _LONG:
        return _REPEATS_OF_LONG
    return min(_MOST_REPEATS, max(_REPEATS, math.floor(_ENOUGH / max(slowest, 1e-9))))


def _seconds_when_warm(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Returns the seconds of a run, or of a second one if the first is shorter than a rest.

    After a rest the caches are cold, which matters for a program of some milliseconds.
    """
    seconds = _seconds(run, clock)
    return _seconds(run, clock) if seconds < _REST else seconds


def _seconds(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    begin = clock()
    run()
    return clock() - begin


def _out_of_memory(error: Exception) -> bool:
    # XLA and PyTorch report it as a RuntimeError like any other.
    found = re.search("RESOURCE_EXHAUSTED|out of memory|can't allocate memory", str(error), re.IGNORECASE)
    return isinstance(error, MemoryError) or found is not None
