"""Tests that the results in the repository are small and complete, and that the pages are what the report writes."""

import pathlib
import re
import shutil
import urllib.parse

import pytest

from launch.reporting.claims import read_claims
from launch.reporting.pages import write_results
from launch.runs.finished import find_runs

ROOT = pathlib.Path(__file__).parents[3]
SECTIONS = sorted(path.name for path in (ROOT / "results").iterdir() if path.is_dir())
PAGES = [ROOT / "RESULTS.md", *(ROOT / "docs/results" / f"{name}.md" for name in SECTIONS)]


def test_results_are_light():
    files = [path for path in (ROOT / "results").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6 * 2**20  # half of it are the weights of four models


def test_the_pages_are_what_the_report_writes(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=shutil.ignore_patterns("params.*"))
    monkeypatch.setattr("launch.reporting.pages.draw_comparison", lambda *_: None)  # a minute of drawing
    monkeypatch.setattr("launch.reporting.pages.draw_test_sets", lambda *_: None)
    written = write_results(tmp_path / "results")
    assert {path.relative_to(tmp_path) for path in written} == {path.relative_to(ROOT) for path in PAGES}
    for path in written:
        again = ROOT / path.relative_to(tmp_path)
        assert path.read_text() == again.read_text(), f"run `python -m launch.report --results=results`: {again.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_is_short_and_its_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= (160 if page.name == "RESULTS.md" else 150)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / urllib.parse.unquote(link)).exists()] == []


def test_every_section_has_a_claim_and_every_figure_is_shown():
    assert sorted(read_claims(ROOT / "results")) == SECTIONS
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    figures = [path.relative_to(ROOT).as_posix() for path in (ROOT / "results").rglob("*.png")]
    assert [name for name in figures if f"]({'../../' + name})" not in shown] == []


def test_commands_of_trials_differ_and_name_no_folder_of_a_machine():
    """Two rows with the same command cannot both be its result."""
    for path in (ROOT / "results").rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        commands = re.findall(r'"command": ?"([^"]*)"', text)
        assert not any(re.search(r"=(/|~)", command) for command in commands), path
        assert path.name != "trials.jsonl" or len(set(commands)) == len(commands), path


def test_every_run_names_what_repeats_it():
    for name in SECTIONS:
        runs, notes = find_runs(ROOT / "results" / name)
        assert notes == []
        for run in runs:
            assert {"config", "command", "seeds", "steps", "seconds", "metrics"} <= run.summary.keys()
            assert all(len(row["per_seed"]) == run.summary["seeds"] for row in run.summary["metrics"].values())
