"""Text that every machine with Python has: the documentation strings of its standard library."""

import ast
import pathlib
import sysconfig
import warnings
from collections.abc import Iterator

import numpy as np

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_SPLITS = {"valid": 8, "test": 9}  # of every ten files; the others are for training


def load(folder: pathlib.Path | None = None, most: int | None = None) -> dict[str, np.ndarray]:
    """The texts "train", "valid", "test" as places in ALPHABET, `[N]` uint8 each; no string is in two of them.

    folder: of Python files; None: of the standard library. most: files to read; None: all.
    """
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"]) if folder is None else folder
    files = [path for path in sorted(folder.rglob("*.py")) if not _LEFT_OUT & set(path.relative_to(folder).parts)]
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    names = {place: name for name, place in _SPLITS.items()}
    seen = set()
    for index, path in enumerate(files[:most]):
        for text in docstrings(path):
            if text not in seen:
                seen.add(text)
                parts[names.get(index % 10, "train")].append(text)
    return {name: encode("\n\n".join(texts)) for name, texts in parts.items()}


def docstrings(path: pathlib.Path) -> Iterator[str]:
    """The documentation strings of a file, from top to bottom; none if it cannot be parsed."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    yield from filter(None, texts)


def encode(text: str) -> np.ndarray:
    """Places in ALPHABET; other characters are left out."""
    place = {character: index for index, character in enumerate(ALPHABET)}
    return np.array([place[c] for c in text if c in place], np.uint8)


def decode(places: np.ndarray) -> str:
    return "".join(ALPHABET[place] for place in places)
