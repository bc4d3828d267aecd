"""For griffe, which reads docstrings: a class's fields, `name: text` a line, are shown as a list."""

import re
from typing import Any

import griffe

_FIELD = re.compile(r"(\w+(?:, \w+)*): ")


def as_list(text: str, fields: set[str]) -> str:
    """Lines that begin with names of fields and a colon become items; indented lines go on with theirs."""
    lines = []
    for line in text.splitlines():
        found = _FIELD.match(line)
        if found and set(found[1].split(", ")) <= fields:
            before = [] if lines and lines[-1].startswith(("- **", "    ")) else [""]
            line = f"- **{found[1]}**: {line[found.end() :]}"
            lines += before
        lines.append(line)
    return "\n".join(lines)


class Fields(griffe.Extension):
    """Rewrites docstrings of classes with annotated fields."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        del kwargs
        fields = {name for name, member in cls.members.items() if member.is_attribute}
        if cls.docstring and fields:
            cls.docstring.value = as_list(cls.docstring.value, fields)
