"""Runs the examples in docstrings."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest

TASKS = {"tasks.babi.samples", "tasks.babi.stream", "tasks.babi.task", "tasks.maze.task"} | {
    f"tasks.algorithmic.{name}"
    for name in ("associative_recall", "copy", "double_copy", "pairs", "priority_sort", "repeat_copy")
}
# Contracts, which tests/testing runs on the same kinds of objects.
SLOW = {f"mnm_jax.testing._{name}" for name in ("cells", "layers", "memories")}
PACKAGES = ("mnm_jax", "tasks", "launch")
KNOWN = {"mnm_jax.memory._build", "launch.sweep.space", "tasks.babi.loader", "tasks.dictionary", *TASKS, *SLOW}


def modules():
    for name in PACKAGES:
        yield name
        package = importlib.import_module(name)
        yield from (found.name for found in pkgutil.walk_packages(package.__path__, f"{name}."))


def find(name):
    module = importlib.import_module(name)
    names = {"jax": jax, "jnp": jnp}
    return [test for test in doctest.DocTestFinder().find(module, extraglobs=names) if test.examples]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in modules()]
)
def test_examples_of(name):
    for package, prefix in {"grain": "tasks.babi", "torch": "launch.bench.accelerator.torch"}.items():
        if name.startswith(prefix):
            pytest.importorskip(package)
    tests = find(name)
    assert tests or name not in KNOWN
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        report = []
        runner.run(test, out=report.append)
        assert not runner.failures, "".join(report)


def test_the_modules_known_to_have_examples_are_found():
    assert set(modules()) >= KNOWN
