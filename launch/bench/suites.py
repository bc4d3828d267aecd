"""Registry of the benchmark suites: the groups to measure, and the figure."""

import importlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from launch.bench.measure import Group, Row


class Suite(NamedTuple):
    """A benchmark suite.

    Attributes:
      groups: `(devices, **sizes) -> groups` of candidates.
      draw: `(rows, path, title)`, draws the figure; needs matplotlib.
      quick: whether the suite is measured in a limited time, on one device, with `measure_one_by_one`; otherwise it is
        measured as a whole, on all devices, with `measure`.
    """

    groups: Callable[..., Iterator[Group]]
    draw: Callable[[Sequence[Row], pathlib.Path, str], None]
    quick: bool = False


def _named(module: str, name: str) -> Callable[..., Any]:
    """Returns a function of `launch.bench`, whose module is imported at its call, since some need further packages."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f"launch.bench.{module}"), name)(*args, **kwargs)

    return call


_MODULES = {
    "training_step": "forms",
    "many_heads": "forms",
    "own_program": "own_program",
    "scaling": "forms",
    "limit": "forms",
    "peers": "peers",
    "lstm": "peers",
    "seeds": "seeds",
    "maze": "maze",
    "layer": "layer",
    "accelerator": "accelerator.suite",
}
SUITES = {
    name: Suite(_named(module, name), _named("figures", f"draw_{name}"), quick=name == "accelerator")
    for name, module in _MODULES.items()
}
