"""What the documentation is built from beside `docs/`; a public name that lacks its text stops the build."""

import importlib
import inspect
import pathlib
import re

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
MODULES = ("mnm_jax", "mnm_jax.training", "mnm_jax.analysis", "mnm_jax.export")


def undocumented() -> list[str]:
    """Public names, and public functions of public classes, that have no docstring of their own."""
    found = []
    for name in MODULES:
        module = importlib.import_module(name)
        names = getattr(module, "__all__", None) or [n for n, o in vars(module).items() if _is_of(o, name)]
        for public in names:
            thing = getattr(module, public)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                found += [f"{name}.{public}{method}" for method in _bare(thing)]
    return sorted(found)


def _is_of(thing: object, module: str) -> bool:
    return getattr(thing, "__module__", None) == module and not thing.__name__.startswith("_")


def _bare(thing: object) -> list[str]:
    # A NamedTuple without a docstring gets one that only repeats its fields.
    own = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    bare = [""] if not own or own.startswith(f"{thing.__name__}(") else []
    if inspect.isclass(thing):
        functions = {n: o for n, o in vars(thing).items() if inspect.isfunction(o) and not n.startswith("_")}
        bare += [f".{n}" for n, o in functions.items() if not o.__doc__ and o.__module__.startswith("mnm_jax")]
    return bare


def deviations() -> str:
    """The README's table, which stands there alone."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"## (Where the paper is silent.*?)\n## ", text, re.DOTALL).group(1)
    return "# " + re.sub(r"\[([^\]]+)\]\((?!http)[^)]+\)", r"\1", section)


def on_pre_build(config):
    del config
    if bare := undocumented():
        raise PluginError(f"public names without a docstring: {', '.join(bare)}.")


def on_files(files, config):
    files.append(File.generated(config, "deviations.md", content=deviations()))
    return files
