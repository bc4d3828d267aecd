"""Runs the programs of a Markdown page, and compares the numbers that they print with the numbers on the page."""

import contextlib
import io
import pathlib
import re
import warnings
from typing import NamedTuple

import jax
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
NUMBER = re.compile(r"-?\d+\.\d+")
_BLOCK = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A program of a page, and the text block with its output that follows it, or None."""

    code: str
    shown: str | None


def blocks(text: str) -> list[Block]:
    """Returns the Python blocks and notebook cells of a Markdown text."""
    found = list(_BLOCK.finditer(text))
    programs = []
    for block, after in zip(found, [*found, None][1:], strict=True):
        if block[1] in ("python", "{code-cell}"):
            is_output = after is not None and after[1] in ("", "text") and not text[block.end() : after.start()].strip()
            code = "\n".join(line for line in block[2].splitlines() if not line.startswith(":"))
            programs.append(Block(code, after[2] if is_output else None))
    return programs


def run(text: str, name: str) -> list[str]:
    """Runs the programs of a page from top to bottom, as a user would in a checkout; returns the printed text of each.

    Raises:
      AssertionError: a program prints other words than the page shows, or a number that differs by more than 0.03, or
        by more than a fifth and one unit of its last digit.
    """
    names, printed = {"__name__": "page"}, []
    with jax.numpy_dtype_promotion("standard"), warnings.catch_warnings(), contextlib.chdir(ROOT):
        warnings.simplefilter("default")
        for code, shown in blocks(text):
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(code, name, "exec", dont_inherit=True), names)  # noqa: S102
            printed.append(output.getvalue())
            if shown is not None:
                assert NUMBER.sub("", printed[-1]) == NUMBER.sub("", shown)
                for found, number in zip(NUMBER.findall(printed[-1]), NUMBER.findall(shown), strict=True):
                    digit = 10.0 ** -len(number.partition(".")[2])
                    tolerance = min(0.03, abs(float(number)) / 5 + digit)
                    np.testing.assert_allclose(float(found), float(number), rtol=0, atol=tolerance, err_msg=name)
    return printed


def anchors(text: str) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower().strip())) for heading in headings}
