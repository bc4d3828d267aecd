"""Loads text that every machine with Python has: the documentation strings of its standard library.

Shape letter: `N` characters.
"""

import ast
import pathlib
import sysconfig
import warnings
from collections.abc import Iterator

import numpy as np

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_SPLITS = {8: "valid", 9: "test"}  # index of a file modulo ten; the other files are for training


def load(folder: pathlib.Path | None = None, most: int | None = None) -> dict[str, np.ndarray]:
    """Returns the texts "train", "valid" and "test" as indices into ALPHABET, `[N]` uint8; they share no string.

    Args:
      folder: folder of Python files; None: the standard library.
      most: number of files to read; None: all.
    """
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"]) if folder is None else folder
    files = [path for path in sorted(folder.rglob("*.py")) if not _LEFT_OUT & set(path.relative_to(folder).parts)]
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    seen: set[str] = set()
    for index, path in enumerate(files[:most]):
        for text in docstrings(path):
            if text not in seen:
                seen.add(text)
                parts[_SPLITS.get(index % 10, "train")].append(text)
    return {name: encode("\n\n".join(texts)) for name, texts in parts.items()}


def docstrings(path: pathlib.Path) -> Iterator[str]:
    """Yields the documentation strings of a file; nothing if it cannot be parsed."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def encode(text: str) -> np.ndarray:
    """Returns indices into ALPHABET, `[N]` uint8; other characters are skipped."""
    places = {character: index for index, character in enumerate(ALPHABET)}
    return np.array([places[character] for character in text if character in places], np.uint8)


def decode(places: np.ndarray) -> str:
    """Returns the text of indices into ALPHABET."""
    return "".join(ALPHABET[place] for place in places)
