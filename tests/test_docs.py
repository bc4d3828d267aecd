"""Tests the documentation: its programs run, its links resolve, and every public name is documented."""

import doctest
import functools
import importlib
import re
import sys

import numpy as np
import pytest

import mnm_jax
from tests.pages import NUMBER, ROOT, anchors, blocks, run

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@functools.cache
def printed_by(page):
    """Runs the programs of a page once for all tests of this process; returns the printed text of each."""
    return run(page.read_text(encoding="utf-8"), page.name)


def named(page):
    return str(page.relative_to(DOCS).with_suffix(""))


@pytest.fixture
def extension(monkeypatch):
    """Returns a module of docs/_ext by its name."""
    pytest.importorskip("sphinx", reason="sphinx is not installed: pip install '.[docs]'")
    monkeypatch.syspath_prepend(DOCS / "_ext")
    yield importlib.import_module
    for name in ("public_names", "equations"):
        sys.modules.pop(name, None)


# The build of the site runs the tutorial as well; how_to.md trains a memory in the same way.
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if page.stem == "tutorial" else page for page in PAGES],
    ids=named,
)
def test_the_programs_of_a_page_run_from_top_to_bottom(page):
    pytest.importorskip("matplotlib")
    printed = printed_by(page)
    if page.stem in ("index", "tutorial", "how_to", "extend", "faq") and page.parent == DOCS:
        assert printed
    if page.stem == "tutorial":
        curves = re.findall(r"(\d+\.\d+) -> (\d+\.\d+)", "".join(printed))
        assert len(curves) == 2  # the memory that stores, and the controller
        for first, last in np.array(curves, float):
            assert last < 0.5 * first


def test_a_stranger_trains_a_memory_in_thirty_lines():
    """The program imports only mnm_jax and jax."""
    text = (DOCS / "how_to.md").read_text(encoding="utf-8")
    ((code, _),) = blocks(text[text.index("## Put the memory into a model") : text.index("### ")])
    place = [block.code for block in blocks(text)].index(code)
    printed = printed_by(DOCS / "how_to.md")[place]
    assert len([line for line in code.splitlines() if line]) <= 30
    assert set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)) == {"jax", "mnm_jax"}
    first, *_, last = np.array(NUMBER.findall(printed), float)
    assert last < 0.3 * first


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        if "://" in file:
            continue
        target = (page.parent / file if file else page).resolve()
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_public_name_is_in_the_reference(extension):
    names = extension("public_names")
    shown = set()
    for page in (DOCS / "api").glob("*.md"):
        module = None
        for kind, argument in re.findall(r"^\.\. (\w+):: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            if kind == "currentmodule":
                module = importlib.import_module(argument)
            elif kind.startswith("auto"):
                shown.add(getattr(module, argument))
    missing = [name for name, thing in names.public_names().items() if thing not in shown]
    assert not missing


def test_a_public_name_without_a_docstring_stops_the_build(monkeypatch, extension):
    names = extension("public_names")
    assert names.undocumented() == []

    class Bare:
        def method(self): ...

    Bare.method.__module__ = "mnm_jax.cells"
    monkeypatch.setattr(mnm_jax, "MNMCell", Bare)
    assert names.undocumented() == ["mnm_jax.MNMCell", "mnm_jax.MNMCell.method"]
    with pytest.raises(Exception, match="without a docstring: mnm_jax.MNMCell, mnm_jax.MNMCell.method"):
        names.check(None)


def test_indented_blocks_of_docstrings_become_equations_or_literal_text(extension):
    text = """A cell of |x|, two `Param`s and x_.

    h_t = A x_t
    slot (t mod N) <- h_t

A step:

    cell(carry, inputs) -> (carry, outputs)

Args:
  size: of all.

    not a block of a section.
"""
    lines = extension("public_names").to_rst(text.split("\n"))
    assert lines[0] == r"A cell of \|x\|, two `Param`\ s and x\_."
    assert lines[2:5] == [".. math::", "", r"   h_{t} &= A x_{t} \\"]
    assert lines[5] == r"   \text{ slot } ( t \text{ mod } N ) &\leftarrow h_{t}"
    assert [line.strip() for line in lines].count(".. code-block:: text") == 1
    assert "   cell(carry, inputs) -> (carry, outputs)" in lines


@pytest.mark.parametrize(
    "text, latex",
    [
        ("phi_t = phi_{t-1} - beta_t c grad_phi L", r"\phi_{t} &= \phi_{t-1} - \beta_{t} c \nabla_{\phi } L"),
        ("r = M_t^T w o psi", r"r &= M_{t}^{\top} w \odot \psi"),
        ("k = A x / sqrt(K + 1)", r"k &= A x / \sqrt{K + 1}"),
        ("f(x) = a . b (x) c", r"f ( x ) &= a \cdot b \otimes c"),
        ("S_t = m_t S_{t-1}   max_norm = c", r"S_{t} &= m_{t} S_{t-1} \qquad \texttt{max_norm} = c"),
        ("a line without a sign", r"& a \text{ line without } a \text{ sign }"),
    ],
)
def test_equations_in_plain_text_become_latex(extension, text, latex):
    assert extension("equations").to_latex(text) == latex


def test_only_several_equations_are_aligned(extension):
    to_math = extension("equations").to_math
    assert to_math(["a = b"]) == "a = b"
    assert to_math(["a = b", "", "c <- d"]) == "a &= b \\\\\nc &\\leftarrow d"


def test_code_and_drawings_are_no_equations(extension):
    is_equations = extension("equations").is_equations
    assert is_equations(["h_t = tanh(A x_t)", "read over slots"])
    assert not is_equations(["state = memory.start(params, 1)"])
    assert not is_equations(["mask    |  1 = 1  |"])
    assert not is_equations([])


def test_the_examples_of_the_extensions_hold(extension):
    assert doctest.testmod(extension("equations")) == (0, 1)
