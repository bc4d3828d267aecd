"""The documentation: its programs run, its links lead somewhere, and no public name is left out or without a text."""

import importlib.util
import pathlib
import re
import warnings

import jax
import pytest

import mnm_jax

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_programs_of_a_page_run_from_top_to_bottom(page, capsys):
    code = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    if page.stem in ("tutorial", "how_to", "faq"):
        assert code
    names = {"__name__": "page"}
    with jax.numpy_dtype_promotion("standard"), warnings.catch_warnings():  # as a user runs it
        warnings.simplefilter("default")
        for block in code:
            exec(compile(block, page.name, "exec", dont_inherit=True), names)  # noqa: S102
    if page.stem == "tutorial":
        stored, named = re.findall(r"(\d+\.\d+) -> (\d+\.\d+)", capsys.readouterr().out)
        assert float(stored[1]) < 0.5 * float(stored[0])
        assert float(named[1]) < 0.5 * float(named[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists() or file == "deviations.md", link  # that page is made by the build
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w]+", "-", heading.lower()).strip("-") for heading in headings}, link


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: mnm_jax\.(\w+)$", text, re.MULTILINE))
    assert set(mnm_jax.__all__) == shown - {"training", "analysis", "export"}


def test_a_public_name_without_a_docstring_stops_the_build(monkeypatch):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    hooks = load("docs_hooks")
    assert hooks.undocumented() == []

    class Bare:
        def method(self): ...

    Bare.method.__module__ = "mnm_jax.cells"
    monkeypatch.setattr(mnm_jax, "MNMCell", Bare)
    assert hooks.undocumented() == ["mnm_jax.MNMCell", "mnm_jax.MNMCell.method"]
    with pytest.raises(Exception, match="without a docstring: mnm_jax.MNMCell, mnm_jax.MNMCell.method"):
        hooks.on_pre_build(None)


def test_the_table_of_deviations_is_that_of_the_readme():
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    page = load("docs_hooks").deviations()
    assert page.startswith("# Where the paper is silent") and "| initial memory | learned |" in page


def test_fields_become_a_list():
    pytest.importorskip("griffe", reason="griffe is not installed: pip install '.[docs]'")
    text = "What it is.\n\nsize: `K`, a\n    number.\na, b: two.\nnone: a word."
    text = load("docs_fields").as_list(text, {"size", "a", "b"})
    assert text == "What it is.\n\n\n- **size**: `K`, a\n    number.\n- **a, b**: two.\nnone: a word."
