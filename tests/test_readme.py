"""Tests that the README's programs print the output that it shows, and that its links and keywords exist."""

import inspect
import re

import pytest

from mnm_jax import MNMCell, gradient_memory, local_memory, unroll
from tests.pages import NUMBER, ROOT, anchors, blocks, run

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_programs_run_and_the_first_prints_the_text_below_it():
    first, *_ = blocks(README)
    assert len([line for line in first.code.splitlines() if line]) <= 10
    printed, *_ = run(README, "README.md")
    assert first.shown is not None and len(NUMBER.findall(printed)) == 10
    numbers = [[float(n) for n in NUMBER.findall(text)] for text in (printed, first.shown)]
    assert numbers[0] == pytest.approx(numbers[1], abs=2e-4)  # four digits are shown


@pytest.mark.parametrize("page", ["README.md", "WORKSPACE.md", "RESULTS.md"])
def test_links_into_the_project_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        file, _, anchor = link.replace("%20", " ").partition("#")
        if "://" not in file:
            assert (ROOT / file).exists(), link
            assert not anchor or anchor in anchors((ROOT / file).read_text(encoding="utf-8")), link


def test_named_keywords_exist():
    """The options of the table of deviations are options of the code."""
    functions = (MNMCell.__init__, gradient_memory, local_memory, unroll)
    known = {name for function in functions for name in inspect.signature(function).parameters}
    named = set(re.findall(r"\b([a-z_]+)=", re.search(r"## Where the paper.*?\n## ", README, re.DOTALL).group()))
    assert named and named <= known
