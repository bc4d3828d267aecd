"""Tests the imported package: its public names, the modules that an import loads, and that no name hides a module."""

import ast
import configparser
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys
import types

import pytest

import mnm_jax


def loaded_after(program):
    """Returns the top-level modules that a fresh interpreter has loaded at the end of a program."""
    program += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(result.stdout.split())


def test_the_memory_needs_jax_alone():
    loaded = loaded_after("import mnm_jax.memory; mnm_jax.memory.gradient_memory(2, 2, hidden_sizes=(3,))")
    assert "jax" in loaded and not loaded & {"flax", "optax", "chex", "orbax", "absl"}


def test_importing_the_package_imports_nothing_else():
    assert not loaded_after("import mnm_jax; dir(mnm_jax)") & {"jax", "flax", "optax", "numpy"}


def test_every_public_name_is_that_of_its_package_and_is_found_again():
    packages = [importlib.import_module(f"mnm_jax.{name}") for name in ("memory", "recurrence", "cells", "layers")]
    for name in mnm_jax.__all__:
        (first, *_) = [package for package in packages if name in package.__all__]
        assert getattr(mnm_jax, name) is getattr(first, name)
        assert vars(mnm_jax)[name] is getattr(first, name)  # without __getattr__ from now on
    assert set(mnm_jax.__all__) <= set(dir(mnm_jax))
    star = {}
    exec("from mnm_jax import *", star)
    assert set(mnm_jax.__all__) <= set(star)


def test_modules_are_attributes_of_the_package_without_an_import():
    program = "import mnm_jax; assert mnm_jax.cells.MNMCell is mnm_jax.MNMCell; mnm_jax.training.train"
    assert "flax" in loaded_after(program)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'mnm_jax' has no attribute 'Memmory'"):
        mnm_jax.Memmory  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Memmory'"):
        exec("from mnm_jax import Memmory")


def modules():
    return [info.name for info in pkgutil.walk_packages(mnm_jax.__path__, "mnm_jax.")]


@pytest.mark.parametrize("name", modules())
def test_no_name_hides_a_module(name):
    """`import a.b.c` binds `a`, and `a.b.c` must be the module, not a function of the same name in the package."""
    module = importlib.import_module(name)
    for package in ("cells", "layers", "memory", "recurrence", "training"):  # every package has set its attributes
        importlib.import_module(f"mnm_jax.{package}")
    found = mnm_jax
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    assert isinstance(found, types.ModuleType) and found is module


@pytest.mark.parametrize("name", ["launch", "tasks"])
def test_no_name_of_a_program_package_hides_one_of_its_modules(name):
    """A module that has not been imported is no attribute yet; any other attribute with its name would hide it."""
    top = importlib.import_module(name)
    found = [info.name for info in pkgutil.walk_packages(top.__path__, f"{name}.") if info.ispkg]
    assert len(found) >= 3
    for package in map(importlib.import_module, [name, *found]):
        for info in pkgutil.iter_modules(package.__path__):
            assert isinstance(vars(package).get(info.name, top), types.ModuleType), f"{package.__name__}.{info.name}"


def test_the_lowest_versions_that_are_tested_are_those_that_are_allowed():
    root = pathlib.Path(mnm_jax.__path__[0]).parent
    settings = configparser.ConfigParser()
    settings.read(root / "setup.cfg")
    allowed = dict(re.findall(r"(\w+) >= ([\d.]+)", settings["options"]["install_requires"]))
    tested = dict(re.findall(r"^(\w+)==(\S+)$", (root / ".ci/constraints-lowest.txt").read_text(), re.MULTILINE))
    assert tested == allowed and {"jax", "flax", "optax", "chex"} <= set(tested)


def test_tuples_of_many_fields_are_built_by_keyword():
    """Fields of a tuple with more than three are easily confused by place."""
    root = pathlib.Path(mnm_jax.__path__[0]).parent
    files = [path for name in ("mnm_jax", "tasks", "launch", "examples") for path in (root / name).rglob("*.py")]
    nodes = [(path.name, node) for path in files for node in ast.walk(ast.parse(path.read_text()))]
    classes = [node for _, node in nodes if isinstance(node, ast.ClassDef)]
    tuples = {node.name for node in classes if "NamedTuple" in map(ast.unparse, node.bases)}
    calls = [(name, node) for name, node in nodes if isinstance(node, ast.Call) and len(node.args) > 3]
    assert {"Steps", "LayerCarry", "Curve", "MazeState", "ModelEntry"} <= tuples and calls
    assert not [(name, call.lineno) for name, call in calls if ast.unparse(call.func).split(".")[-1] in tuples]
