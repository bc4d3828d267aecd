"""What the README shows is what happens."""

import contextlib
import inspect
import io
import pathlib
import re

import numpy as np
import pytest

from mnm_jax import MNMCell, gradient_memory, local_memory, unroll

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"-?\d+\.\d+")


def test_the_first_example_prints_what_stands_below_it():
    code, shown = re.search(r"```python\n(.*?)```\s*```\n(.*?)```", README, re.DOTALL).groups()
    assert len([line for line in code.splitlines() if line]) <= 10
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    assert NUMBER.sub("", printed.getvalue()) == NUMBER.sub("", shown)
    numbers = [np.array(NUMBER.findall(text), float) for text in (printed.getvalue(), shown)]
    np.testing.assert_allclose(*numbers, atol=2e-4)  # four digits are shown


def test_a_stranger_trains_a_memory_in_thirty_lines():
    """With mnm_jax and jax alone, and with the numbers that stand below it."""
    section = re.search(r"## Train a memory in 30 lines\n(.*?)\n## ", README, re.DOTALL).group(1)
    code, shown = re.search(r"```python\n(.*?)```\s*```\n(.*?)```", section, re.DOTALL).groups()
    assert len([line for line in code.splitlines() if line]) <= 30
    imported = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
    assert set(imported) == {"jax", "mnm_jax"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    first, *_, last = np.array(NUMBER.findall(printed.getvalue()), float)
    assert last < 0.3 * first
    np.testing.assert_allclose([first, last], np.array(NUMBER.findall(shown), float)[[0, -1]], atol=0.03)


@pytest.mark.parametrize("page", ["README.md", "WORKSPACE.md", "RESULTS.md"])
def test_links_into_the_project_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link.replace("%20", " ")).exists()]
    assert not missing


def test_named_keywords_exist():
    """The options of the table of deviations are options of the code."""
    functions = (MNMCell.__init__, gradient_memory, local_memory, unroll)
    known = {name for function in functions for name in inspect.signature(function).parameters}
    named = set(re.findall(r"\b([a-z_]+)=", re.search(r"## Where the paper.*?\n## ", README, re.DOTALL).group()))
    assert named and named <= known
