"""Tasks and models of a user: a config names them as MODULE:FACTORY, and this package need not be changed."""

import importlib
import pathlib
import sys
import traceback
from typing import Any

_folders: set[str] = set()  # added by `add_folder`
FOLDER = "folder"  # key of a config: the recipe's folder, which may hold the modules that the recipe names


def is_place(name: Any) -> bool:
    """Returns whether a name in a config is MODULE:FACTORY, not a name of a registry."""
    return isinstance(name, str) and ":" in name


def add_folder(folder: str) -> None:
    """Makes the modules in a folder importable; they come last, so that none replaces a module of this program."""
    _folders.add(folder)
    if folder not in sys.path:
        sys.path.append(folder)


def place_of(error: BaseException) -> str:
    """Returns " (FILE, line N)" of the last line in a user's folder that an error passed through, "" if there is none.

    A command reports an error in one line instead of a traceback, so that this line must name the place.
    """
    place = "" if error.__cause__ is None else place_of(error.__cause__)
    if not place:
        for frame in traceback.extract_tb(error.__traceback__):
            if str(pathlib.Path(frame.filename).parent) in _folders:
                place = f" ({frame.filename}, line {frame.lineno})"
    return place


def load(place: str, folder: str | None = None) -> Any:
    """Returns the object MODULE:NAME; the module is in `folder` or on `sys.path`.

    Raises:
      ValueError: if there is no such module, another one of its name hides that in `folder`, or it has no such name.
    """
    name, _, attribute = place.partition(":")
    if not all(map(str.isidentifier, [*name.split("."), attribute])):
        raise ValueError(f"{place!r} must be MODULE:FACTORY, such as 'my_task:MyTask'.")
    if folder is not None:
        add_folder(folder)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module was found, but not one that it imports
        where = "" if folder is None else f"in {folder} or "
        raise ValueError(
            f"{place!r}: no module {error.name!r} {where}on sys.path; add its folder to the variable PYTHONPATH."
        ) from error
    _check_file(place, name.partition(".")[0], folder)
    if not callable(found := getattr(module, attribute, None)):
        raise ValueError(f"{place!r}: {module.__file__} has no function or class {attribute!r}.")
    return found


def _check_file(place: str, top: str, folder: str | None) -> None:
    """Raises ValueError if `folder` has the module or package `top`, but another one of that name was imported."""
    if folder is None:
        return
    own = [pathlib.Path(folder, file) for file in (f"{top}.py", f"{top}/__init__.py")]
    found = pathlib.Path(sys.modules[top].__file__ or "")
    if any(path.is_file() for path in own) and not any(path.resolve() == found.resolve() for path in own):
        raise ValueError(f"{place!r}: {top!r} is also the module {found}; rename the one in {folder}.")
