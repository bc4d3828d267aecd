"""Claims of RESULTS.md: one row each, filled with numbers of runs.

`claims.toml` has one array of tables per section, in the order of the page:

    [[dictionary]]
    claim = "Strings of five letters, 16 pairs: accuracy"
    anchor = "LSTM-SALU {{n=5,S=16/lstm-salu: test/accuracy}}"
    source = "same budget"
    ours = "MNM-g {{n=5,S=16/mnm-g: test/accuracy}}"
    run = "n=5,S=16/mnm-g"

`anchor` and `ours` may hold placeholders (see `launch.reporting.placeholders`). `run` is the run, or the benchmark
file, whose number of seeds and whose command the row shows. The keys `source` and `command` are optional; `command`
replaces the command of the run.
"""

import pathlib
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence

from launch.reporting.benchmark_table import benchmark_command, benchmark_files
from launch.reporting.placeholders import Section, fill
from launch.reporting.text_table import ABSENT
from launch.runs.finished import Run

CLAIMS = "claims.toml"
_NEEDED = {"claim", "anchor", "ours", "run"}
_STEPS = "--config.training.steps="
_KNOWN = _NEEDED | {"source", "command"}


def read_claims(results: pathlib.Path) -> dict[str, list[dict[str, str]]]:
    """Returns the claims of each section, in the order of `claims.toml`; empty if there is no such file.

    Raises:
      ValueError: the file is damaged, or a key is missing from a claim or has an unknown one.
    """
    path = results / CLAIMS
    if not path.is_file():
        return {}
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}).") from error
    for section, claims in sections.items():
        for claim in claims:
            title = claim.get("claim", "without a text")
            if lacking := sorted(_NEEDED - claim.keys()):
                raise ValueError(f"{path}: a claim of {section} ({title}) lacks {', '.join(lacking)}.")
            if unknown := sorted(claim.keys() - _KNOWN):
                raise ValueError(f"{path}: a claim of {section} ({title}) has the unknown key {', '.join(unknown)}.")
    return sections


def claim_rows(claims: Sequence[Mapping[str, str]], section: Section) -> list[dict[str, str]]:
    """Returns the table of a section's claims.

    Raises:
      ValueError: a placeholder cannot be filled, or a claim names no run and no benchmark file of the section.
    """
    rows = []
    for claim in claims:
        anchor = fill(claim["anchor"], section)
        source = f" ({claim['source']})" if claim.get("source") else ""
        seeds, command = _origin(claim["run"], section)
        rows.append(
            {
                "claim": claim["claim"],
                "paper or anchor": f"{anchor}{source}",
                "ours": fill(claim["ours"], section),
                "seeds": seeds,
                "command": f"`{claim.get('command', command)}`",
            }
        )
    return rows


def command_words(run: Run) -> list[list[str]]:
    """Returns the words, after the interpreter, of each command that repeats a run; a flag and its value are one word.

    A run that was continued after it had ended has a command per number of updates, since the schedule of the learning
    rate depends on that number.
    """
    words: list[str] = []
    for word in shlex.split(run.summary["command"])[1:]:
        if words and re.fullmatch(r"--(workdir|config[^=]*)", words[-1]) and not re.match(r"-+[a-zA-Z]", word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    if not (continued := run.summary.get("continued_at")):
        return [words]
    if not any(word.startswith(_STEPS) for word in words):
        words.append(_STEPS)
    ends = [*continued, run.summary["steps"]]
    return [[f"{_STEPS}{steps}" if word.startswith(_STEPS) else word for word in words] for steps in ends]


def commands_of(run: Run, section: str) -> list[str]:
    """Returns the commands of a run as they can be typed again: plain `python`, and a new workdir below `runs/`."""
    workdir = f"--workdir=runs/{section}/{run.place}"
    return [
        shlex.join(["python", *(workdir if word.startswith("--workdir=") else word for word in words)])
        for words in command_words(run)
    ]


def _origin(name: str, section: Section) -> tuple[str, str]:
    """Returns the number of seeds and the commands of a run, or "-" and the command of a benchmark file."""
    if name in section.runs:
        run = section.runs[name]
        return str(run.summary["seeds"]), "`, then `".join(commands_of(run, section.folder.name))
    if rows := benchmark_files(section.folder).get(section.folder / name):
        return ABSENT, benchmark_command(rows)
    raise ValueError(
        f"{section.folder.parent / CLAIMS}: {section.folder.name} has no run and no file of a benchmark {name!r}."
    )
