"""Tasks and models of a user: a config names them as MODULE:FACTORY, and this package need not be changed."""

import importlib
import pathlib
import sys
import sysconfig
import traceback
from types import ModuleType
from typing import Any

_folders: set[str] = set()  # added by `add_folder`
# A user's folder may contain the environment or this program, whose files are not the user's.
_LIBRARIES = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")}
_LIBRARIES |= {str(pathlib.Path(__file__).parents[2] / name) for name in ("launch", "tasks", "mnm_jax")}
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
            above = {str(folder) for folder in pathlib.Path(frame.filename).parents}
            if above & _folders and not above & _LIBRARIES:
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
        raise ValueError(f"{place!r}: {_show(module)} has no function or class {attribute!r}.")
    return found


def _check_file(place: str, top: str, folder: str | None) -> None:
    """Raises ValueError if `folder` has the module or package `top`, but another one of that name was imported."""
    if folder is None:
        return
    own = [pathlib.Path(folder, file) for file in (f"{top}.py", f"{top}/__init__.py")]
    found = pathlib.Path(getattr(sys.modules[top], "__file__", None) or "").resolve()
    if any(path.is_file() for path in own) and found not in [path.resolve() for path in own]:
        raise ValueError(
            f"{place!r}: {top!r} is also the module {_show(sys.modules[top])}; rename the one in {folder}."
        )


def _show(module: ModuleType) -> str:
    """Returns the file of a module, or name and kind of one without a file, such as `'time' (built-in)`."""
    return getattr(module, "__file__", None) or repr(module).strip("<>").removeprefix("module ")
