"""Sphinx extension: reads the project's docstrings, and stops the build at a public name without one."""

import importlib
import inspect
import re
import textwrap
from typing import Any

import equations
from flax import nnx
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.ext.autodoc.preserve_defaults import update_defvalue

MODULES = (
    "mnm_jax",
    "mnm_jax.memory",
    "mnm_jax.cells",
    "mnm_jax.recurrence",
    "mnm_jax.layers",
    "mnm_jax.training",
    "mnm_jax.analysis",
    "mnm_jax.export",
    "mnm_jax.testing",
)

_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Examples?|References|Note|Warning):$")
_LIST_ITEM = re.compile(r"([-*]|\d+\.|\.\.) ")


def public_names() -> dict[str, object]:
    """Returns every public class and function by its dotted name, as a user imports it."""
    found = {}
    for name in MODULES:
        module = importlib.import_module(name)
        own = [n for n, thing in vars(module).items() if _is_defined_in(thing, name)]
        for public in getattr(module, "__all__", own):
            thing = getattr(module, public)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                found[f"{name}.{public}"] = thing
    return found


def undocumented() -> list[str]:
    """Returns the public names, and public methods of public classes, that have no docstring of their own."""
    return sorted(f"{name}{method}" for name, thing in public_names().items() for method in _bare(thing))


def _is_defined_in(thing: object, module: str) -> bool:
    return getattr(thing, "__module__", None) == module and not thing.__name__.startswith("_")


def _bare(thing: Any) -> list[str]:
    # Python gives a NamedTuple or dataclass without a docstring one that only repeats its fields.
    own = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    bare = [""] if not own or own.startswith(f"{thing.__name__}(") else []
    if inspect.isclass(thing):
        methods = {n: f for n, f in vars(thing).items() if inspect.isfunction(f) and not n.startswith("_")}
        bare += [f".{n}" for n, f in methods.items() if not f.__doc__ and f.__module__.startswith("mnm_jax")]
    return bare


def to_rst(lines: list[str]) -> list[str]:
    """Returns a docstring's lines as reStructuredText: indented blocks become equations or literal blocks.

    In a docstring an indented block after a blank line stands as it is written; reStructuredText would join its lines.
    """
    result: list[str] = []
    i = 0
    while i < len(lines):
        if _begins_block(lines, i):
            indent = _indent(next(line for line in reversed(lines[:i]) if line.strip()))
            ends = (j for j in range(i, len(lines)) if lines[j].strip() and _indent(lines[j]) <= indent)
            end = next(ends, len(lines))
            result += _block(textwrap.dedent("\n".join(lines[i:end])).split("\n"), " " * indent)
            i = end
        else:
            is_code = lines[i].lstrip().startswith((">>>", "..."))
            result.append(lines[i] if is_code else _escape(lines[i]))
            i += 1
    return result


def _block(lines: list[str], indent: str) -> list[str]:
    if equations.is_equations(lines):
        directive, lines = ".. math::", equations.to_math(lines).split("\n")
    else:
        directive = ".. code-block:: text"
    return [indent + directive, "", *(f"{indent}   {line}".rstrip() for line in lines), ""]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _begins_block(lines: list[str], i: int) -> bool:
    if i < 2 or not lines[i].strip() or lines[i - 1].strip() or lines[i].lstrip().startswith((">>>", ".. ")):
        return False
    before = next((line for line in reversed(lines[:i]) if line.strip()), "")
    if _indent(lines[i]) <= _indent(before) or _LIST_ITEM.match(before.strip()) or before.endswith("::"):
        return False
    depth = _indent(before)
    for line in reversed(lines[:i]):  # the fields of a section may have paragraphs of their own
        if line.strip() and _indent(line) <= depth:
            depth = _indent(line)
            if _SECTION.match(line.strip()):
                return False
    return True


def _escape(line: str) -> str:
    parts = re.split(r"(`+[^`]*`+)", line)
    parts[::2] = [re.sub(r"(?<=\w)_(?!\w)|\|", r"\\\g<0>", part) for part in parts[::2]]
    parts[2::2] = [re.sub(r"^(?=\w)", r"\\ ", part) for part in parts[2::2]]  # `Param`s
    return "".join(parts)


def process_docstring(app: Sphinx, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Rewrites a docstring in place, before napoleon reads its sections."""
    del app, what, name, thing, options
    lines[:] = to_rst(lines)


def skip_member(app: Sphinx, what: str, name: str, thing: object, skip: bool, options: Any) -> bool | None:
    """Leaves out the fields of NamedTuples: the class's docstring describes them."""
    del app, what, name, skip, options
    return True if type(thing).__name__ == "_tuplegetter" else None


def process_signature(app: Sphinx, what: str, name: str, thing: object, *args: Any) -> tuple[str, None] | None:
    """Leaves out the signature of a protocol, which has no constructor."""
    del app, what, name, args
    return ("", None) if getattr(thing, "_is_protocol", False) else None


def check(app: Sphinx) -> None:
    """Raises ExtensionError, which names them, if public names have no docstring."""
    del app
    if bare := undocumented():
        raise ExtensionError(f"public names without a docstring: {', '.join(bare)}.")


def sign_modules(app: Sphinx) -> None:
    """Gives flax modules their constructor's signature; Sphinx reads that of the metaclass, `(*args, **kwargs)`."""
    for thing in public_names().values():
        if isinstance(thing, type(nnx.Module)):
            update_defvalue(app, thing.__init__, bound_method=False)  # keeps defaults as they are written
            signature = inspect.signature(thing.__init__)
            thing.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.setup_extension("sphinx.ext.autodoc")  # defines the events below
    app.connect("builder-inited", check)
    app.connect("builder-inited", sign_modules)
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("autodoc-process-signature", process_signature)
    app.connect("autodoc-skip-member", skip_member)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
