"""RESULTS.md, one row per claim, and a page per section in docs/results, from a folder of sections of finished runs.

A section is a folder with the light form of its runs (see `launch.runs.light`), finished runs or benchmark files, and a
`README.md`: a heading and a text with placeholders (see `launch.reporting.placeholders`). A figure is drawn where the
text shows it: `learning_curves.png`, and `accuracy_by_KEY.png` for test sets named `KEY=SIZE`. The text of a
`README.md` beside the sections follows the first paragraph of RESULTS.md, with links as seen from there.
"""

import pathlib
import re
import shlex
import sys
import urllib.parse
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from launch.reporting.benchmark_table import benchmark_commands, benchmark_parts
from launch.reporting.claims import CLAIMS, claim_rows, command_words, read_claims
from launch.reporting.draw import BY_SIZE, CURVES, draw_comparison, draw_test_sets, or_note
from launch.reporting.placeholders import Section, fill
from launch.reporting.table import by_test_set, comparison_rows, group_rows, model_rows, run_names
from launch.reporting.task_errors import errors_by_task, run_rows
from launch.reporting.text_table import format_markdown, wrap
from launch.runs.finished import Run, find_runs, join_seeds
from launch.runs.light import SUMMARIES
from launch.runs.metrics import natural
from launch.runs.registry import MODELS, TASKS
from mnm_jax._files import whole_file

_RUNS = 40  # rows of the table of runs; of more runs, a table shows the scores by model and group
_SEED = "--config.training.seed="
_PATTERNS = 6  # commands shown on a page; the others differ in settings only
_MADE = "<!-- Written by `python -m launch.report --results={folder}`: change {sources}, not this page. -->"
_PREAMBLE = """\
# Results

Every number of ours, here and on the pages behind the headings, is filled in from the files of runs in
`{folder}/`. *ours* is the mean ± sample standard deviation over the seeds of a run, on the test set, after the last
update; an accuracy without a % sign is a fraction, 1 = everything right. *anchor* is the number that a claim is
compared with, of the paper or of another model. Where a claim starts with "Not" or names another model as better, this
library is behind. The command repeats a run from the beginning.
"""
_COLUMNS = {
    "chance": "*chance*: accuracy of guessing.",
    "accuracy": "*accuracy*: test set, after the last update, mean ± sample standard deviation over seeds.",
    "reward": "*reward*: per test episode, after the last update, mean ± sample standard deviation over seeds.",
    "bits per character": "*bits per character*: test text, mean ± sample standard deviation over seeds.",
    "updates to 90%": "*updates to 90%*: first validation with 90% right, mean over the seeds that reach it.",
    "seconds": "*seconds*: all seeds together, with compilation and evaluation.",
}
_MAIN_SCORE = "Test set, after the last update, mean ± sample standard deviation over seeds."


class _Page(NamedTuple):
    section: Section
    joined: list[Run]
    members: list[Run]
    notes: list[str]


def write_results(results: pathlib.Path) -> list[pathlib.Path]:
    """Writes RESULTS.md beside a folder of sections, and `docs/results/SECTION.md` for each; returns their paths.

    The figures that a section's text shows are drawn into the section's folder. If a number cannot be filled in, no
    page is written.

    Raises:
      FileNotFoundError: there is no such folder, or no section in it.
      ValueError: a run or a file is damaged, a text or a claim names a number or a figure that is not there, or a page
        in the place of one of these was written by hand.
    """
    folders = sorted((path for path in results.glob("[!.]*") if path.is_dir()), key=lambda path: natural(path.name))
    if not folders:
        raise FileNotFoundError(f"no section in {results}: put the folders of runs into {results}/SECTION/GROUP/LABEL.")
    root = results.absolute()
    paths = [root.parent / "RESULTS.md", *(root.parent / f"docs/results/{folder.name}.md" for folder in folders)]
    for path in paths:
        if path.is_file() and not path.read_text(encoding="utf-8").startswith(_MADE.partition("{")[0]):
            raise ValueError(f"{path} was not written by launch.report, which would replace it; move it away.")
    read = [_read(root / folder.name) for folder in folders]
    texts = [_overview(root, read), *map(_section_page, read)]
    for path, text in zip(paths, texts, strict=True):
        with whole_file(path) as file:
            file.write(text)
    return paths


def _read(folder: pathlib.Path) -> _Page:
    members, notes = find_runs(folder)
    joined = join_seeds(members, folder)
    for note in notes:
        print(f"left out: {note}", file=sys.stderr)
    section = Section(folder, {run.place: run for run in [*members, *joined]})
    return _Page(section=section, joined=joined, members=members, notes=notes)


def _overview(root: pathlib.Path, pages: Sequence[_Page]) -> str:
    claims = read_claims(root)
    by_name = {page.section.folder.name: page.section for page in pages}
    if unknown := sorted(claims.keys() - by_name.keys()):
        raise ValueError(f"{root / CLAIMS}: there is no section {', '.join(unknown)} in {root}.")
    parts = [
        _MADE.format(folder=root.name, sources=f"{root.name}/{CLAIMS}, {root.name}/README.md or the runs"),
        _PREAMBLE.format(folder=root.name).strip(),
    ]
    if (root / "README.md").is_file():
        parts.append((root / "README.md").read_text(encoding="utf-8").strip())
    for name in [*claims, *(name for name in by_name if name not in claims)]:
        section = by_name[name]
        parts.append(f"## [{_title(_read_text(section))}](docs/results/{urllib.parse.quote(name)}.md)")
        if name in claims:
            parts.append(format_markdown(claim_rows(claims[name], section)))
    return "\n\n".join(parts) + "\n"


def _section_page(page: _Page) -> str:
    section, folder = page.section, page.section.folder
    raw = _read_text(section)
    sources = f"{folder.parent.name}/{folder.name}/README.md or the runs"
    parts = [
        _MADE.format(folder=folder.parent.name, sources=sources),
        wrap(_with_figures(fill(raw, section), page)),
        *_run_parts(page),
    ]
    placed = {path.name for path in folder.glob("*.json") if path.name in raw}
    benchmarks = benchmark_parts(folder, _link(folder), without=placed)
    if placed and len(placed) == len(list(folder.glob("*.json"))):
        commands = benchmark_commands(folder, placed)
        benchmarks = ["## Commands", f"```sh\n{commands}\n```"]
    if not page.joined and not benchmarks:
        parts.append("No finished run yet.")
    parts += benchmarks
    parts += ["Left out: " + note.replace(f"{folder}/", "") for note in page.notes]
    return "\n\n".join(parts) + "\n"


def _run_parts(page: _Page) -> list[str]:
    """Returns tables and commands of a section's runs."""
    runs, members = page.joined, page.members
    if not runs:
        return []
    hours = sum(run.summary["seconds"] for run in runs) / 3600
    count = f"{len(members)} run{'s' * (len(members) != 1)}, {hours:.1f} hours in sequence."
    tables = _tables_by_group(runs, count) if len(runs) > _RUNS else _tables_by_run(runs, count)
    return ["## Runs", *tables, "## Commands", *_commands(page)]


def _tables_by_run(runs: Sequence[Run], count: str) -> list[str]:
    rows = comparison_rows(runs)
    legend = " ".join([count, *(text for column, text in _COLUMNS.items() if column in rows[0])])
    parts = [format_markdown(rows), wrap(legend), *_formulas(runs)]
    errors = {run.place: errors_by_task(run.summary["metrics"]) for run in runs}
    sets = [by_test_set(run.summary) for run in runs]
    if any(errors.values()):
        rows = run_rows({place: found for place, found in errors.items() if found})
        parts += ["Test error in % by task, mean over seeds; *failed* are tasks above 5%:", format_markdown(rows)]
    elif any(sets):
        rows = [names | own for names, own in zip(run_names(runs), sets, strict=True)]
        parts += ["Accuracy by test set, with the same parameters:", format_markdown(rows)]
    return parts


def _tables_by_group(runs: Sequence[Run], count: str) -> list[str]:
    scores = f"{_MAIN_SCORE} `{SUMMARIES}` has the scores on every test set, and the seconds, of each run."
    totals = f"{count} {_COLUMNS['seconds']}"
    return [
        format_markdown(model_rows(runs)),
        wrap(scores),
        format_markdown(group_rows(runs)),
        wrap(totals),
        *_formulas(runs),
    ]


def _formulas(runs: Sequence[Run]) -> list[str]:
    """Returns a list of the tasks and models of runs with the formulas of the registries."""
    known = [(registry, run.summary[kind]) for kind, registry in (("task", TASKS), ("model", MODELS)) for run in runs]
    lines = [f"- {name}: `{registry[name].formula}`" for registry, name in known if name in registry]
    return ["\n".join(dict.fromkeys(lines))] if lines else []


def _commands(page: _Page) -> list[str]:
    """Returns the commands of a section's runs as patterns, the first ones if there are many."""
    name = page.section.folder.name
    patterns: dict[str, list[str]] = {}
    for run in page.members:
        patterns.setdefault(_pattern(run, name), []).append(run.place)
    shown = list(patterns.items())[:_PATTERNS]
    lines = []
    for pattern, places in shown:
        lines.append(f"# {_shorten(places)}\n{pattern}")
    block = "```sh\n" + "\n".join(lines) + "\n```"
    hidden = len(patterns) - len(shown)
    where = f"`{page.section.folder.parent.name}/{name}/{SUMMARIES}` has the command of every run as `command`"
    seed = ", SEED its first seed" if any(f"{_SEED}SEED" in pattern for pattern in patterns) else ""
    note = f"RUN is the place of a run, such as `{page.members[0].place}`, MODEL its model{seed}; {where}"
    if hidden:
        note += f", also of the {hidden} settings that are not shown"
    return [block, wrap(f"{note}. {_unrepeatable(page.members)}".rstrip())]


def _unrepeatable(members: Sequence[Run]) -> str:
    """Returns sentences about the runs whose program is not known exactly."""
    unknown = [run.place for run in members if not run.summary.get("commit")]
    dirty = [run.place for run in members if str(run.summary.get("commit")).endswith("-dirty")]
    sentences = [f"Runs without a recorded commit: {_shorten(unknown)}."] if unknown else []
    if dirty:
        sentences.append(f"Runs of a program with uncommitted changes: {_shorten(dirty)}.")
    return " ".join(sentences)


def _shorten(places: Sequence[str]) -> str:
    """Returns the first places of a list, and how many follow."""
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return f"{'; '.join(places[:3])}{more}"


def _pattern(run: Run, section: str) -> str:
    """Returns the commands of a run, one per line, with RUN, MODEL and SEED for what differs between runs."""
    lines = []
    for command in command_words(run):
        words = []
        for word in command:
            if word.startswith("--workdir="):
                continue
            if word.startswith(_SEED):
                word = f"{_SEED}SEED"
            if word.endswith((f":{run.place}", f"/{run.place}")):
                word = word.removesuffix(run.place) + "RUN"
            elif word.endswith((f":{run.summary['model']}", f"={run.summary['model']}")):
                word = word.removesuffix(run.summary["model"]) + "MODEL"
            words.append(word)
        lines.append(f"{shlex.join(['python', *words])} --workdir=runs/{section}/RUN")
    return "\n".join(lines)


def _with_figures(text: str, page: _Page) -> str:
    """Draws the figures that a text shows, and returns it with links as seen from the page.

    A text without any figure gets the learning curves of the runs at its end.
    """
    folder = page.section.folder
    by_size = re.findall(r"\]\(" + re.escape(BY_SIZE).replace(r"\{\}", r"(\w+)") + r"\)", text)
    if page.joined and "![" not in text:
        with or_note(f"{folder}: no comparison"):
            draw_comparison(page.joined, folder)
            text += f"\n\n![Learning curves]({CURVES})"
    elif f"]({CURVES})" in text:
        draw_comparison(page.joined, folder)
    for key in dict.fromkeys(by_size):
        draw_test_sets(page.joined, key, folder)
    pieces = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)  # code may look like a link
    for index in range(0, len(pieces), 2):
        for name in re.findall(r"!\[[^\]]*\]\((?![a-z]+:|/|#)([^)]+)\)", pieces[index]):
            if not (folder / urllib.parse.unquote(name)).is_file():
                raise ValueError(f"{folder / 'README.md'} shows {name}, which is neither there nor drawn from runs.")
        pieces[index] = re.sub(r"\]\(([^)#]+)\)", partial(_as_seen_from_page, folder), pieces[index])
    return "".join(pieces)


def _as_seen_from_page(folder: pathlib.Path, match: re.Match[str]) -> str:
    """Returns a link of a section's text as seen from its page; other links than to its files stay unchanged."""
    there = (folder / urllib.parse.unquote(match[1])).exists()
    return f"]({_link(folder)}/{match[1]})" if there else match[0]


def _read_text(section: Section) -> str:
    """Returns the README.md of a section; without a heading, or without the file, its folder's name is the heading."""
    path = section.folder / "README.md"
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return text if text.startswith("# ") else f"# {section.folder.name}\n\n{text}".strip()


def _title(text: str) -> str:
    return text.splitlines()[0].removeprefix("# ").strip()


def _link(folder: pathlib.Path) -> str:
    return "../../" + urllib.parse.quote(f"{folder.parent.name}/{folder.name}", safe="/=,")
