"""Tests tasks, cells and encoders of a user, which a recipe names as MODULE:FACTORY."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from launch.reporting.draw import report_runs
from launch.runs.build import build_parts
from launch.runs.config_flag import _Parser, _run
from launch.runs.evaluate import evaluate_folder
from launch.runs.finished import without_seed
from launch.runs.own import load, place_of
from launch.runs.plain import plain_config
from launch.runs.train import train_run
from launch.runs.workdir import claim, read_config
from mnm_jax.cells import CellOutput

ROOT = pathlib.Path(__file__).parents[3]
RECIPE = ROOT / "examples/own_task/recipe.py"


@pytest.fixture(autouse=True)
def _same_modules(monkeypatch):
    """Forgets the folders and modules of a test, as if each were a process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "." not in name and name.startswith(("own_", "variables_")):
            del sys.modules[name]


def read(recipe):
    """Returns the config of `--config=RECIPE`."""
    return _Parser().parse(str(recipe))


def short(config, **task):
    config.task.update(task)
    config.training.update(steps=2, batch_size=8, log_every=1, eval_every=2)
    return config


def test_the_example_is_trained_evaluated_and_reported(tmp_path, without_drawing):
    config = short(read(RECIPE), assignments=2, questions=1)
    summary = train_run(config, tmp_path / "gated")
    assert (summary["task"], summary["model"]) == ("variables", "variables_cells:make_gated")
    assert summary["config"]["folder"] == str(RECIPE.parent)
    found = evaluate_folder(tmp_path / "gated")
    np.testing.assert_allclose(found.metrics["test/loss"], summary["metrics"]["test/loss"]["per_seed"], rtol=1e-5)
    with without_drawing():
        table = report_runs(tmp_path)
    assert "variables_cells:make_gated" in table and (tmp_path / "gated/figures/learning_curve.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("model", "accuracy"), [("gated", 0.9), ("delta", 0.9)])
def test_the_commands_train_the_example_from_anywhere(tmp_path, model, accuracy):
    command = [sys.executable, "-m", "launch.train", f"--config={RECIPE}:{model}", "--workdir=run"]
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    command = [sys.executable, "-m", "launch.evaluate", "--workdir=run"]
    table = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert float(table.split("accuracy")[1].split()[0]) > accuracy


def test_the_other_models_of_the_example_run(tmp_path):
    for name in ("delta", "mnm-p"):
        config = read(f"{RECIPE}:{name}").to_dict()
        task, make_model, _ = build_parts(config)
        model = jax.eval_shape(lambda make=make_model: make(nnx.Rngs(0)))
        batch = jax.eval_shape(lambda task=task: task.sample(jax.random.key(0), 2))
        output = jax.eval_shape(lambda model, batch: model(batch.inputs, mask=batch.mask), model, batch)
        assert output.logits.shape == (9, 2, 4) and isinstance(output.cell, CellOutput)


CELLS = """
def make(*, features, rngs, width: int = 3):
    return None
class Cell:
    def __init__(self, in_features, *, rngs): ...
class Task:
    name = "task"
number = 3
"""
TEXT = """
from __future__ import annotations
def make(*, features: int, rngs, width: int = 3, deep: bool = False):
    return None
def unknown(*, features: int, rngs: OnlyForTypeCheckers):
    return None
"""


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ("task", {"name": "own_absent:Task"}, "'own_absent:Task': no module 'own_absent' in {} or on sys.path; add"),
        ("task", {"name": "own_cells:Absent"}, "'own_cells:Absent': {}/own_cells.py has no function or class 'Absent'"),
        ("task", {"name": "own_cells:number"}, "has no function or class 'number'"),
        ("task", {"name": "own_cells:make:2"}, "must be MODULE:FACTORY, such as 'my_task:MyTask'"),
        ("task", {"name": ":make"}, "must be MODULE:FACTORY"),
        ("task", {"name": "own_imports:Task"}, "No module named 'own_of_nobody'"),
        ("task", {"name": "own_cells:Task"}, "task own_cells:Task lacks input_features, output_features, sample, "),
        ("task", {"name": "json:loads"}, "'json:loads': 'json' is also the module "),
        ("task", {"name": "time:Model"}, "'time' is also the module 'time' (built-in); rename the one in {}"),
        ("task", {"name": "sys:Model"}, "'sys:Model': 'sys' (built-in) has no function or class 'Model'"),
        ("model", {"name": "own_cells:Cell"}, "model own_cells:Cell must be a function (*, features, ..., rngs) that"),
        ("model", {"name": "own_cells:make", "size": 3}, "model own_cells:make has an unknown key 'size'"),
        ("model", {"name": "own_cells:make", "width": 0}, "width must be >= 1, got 0"),
        ("model", {"name": "own_text:make", "width": 0}, "width must be >= 1, got 0"),
        ("model", {"name": "own_text:make", "deep": 1}, "deep must be True or False, got 1"),
        ("model", {"name": "own_text:unknown", "size": 3}, "model own_text:unknown has an unknown key 'size'"),
    ],
)
def test_what_is_missing_or_wrong_is_named(tmp_path, section, settings, message):
    (tmp_path / "own_cells.py").write_text(CELLS)
    (tmp_path / "own_text.py").write_text(TEXT)
    (tmp_path / "own_imports.py").write_text("import own_of_nobody")
    for name in ("json", "time"):
        (tmp_path / f"{name}.py").write_text("def loads(): ...")
    config = {
        "task": {"name": "dictionary"},
        "model": {"name": "lstm", "hidden_features": 2},
        "training": {"steps": 1},
        "folder": str(tmp_path),
    }
    config[section] = settings
    with pytest.raises((ValueError, ImportError)) as error:
        build_parts(config)
    assert message.format(tmp_path) in str(error.value)
    assert (tmp_path / "own_cells.py").exists() and "\n" not in str(error.value)


def test_a_recipe_may_import_the_modules_next_to_it(tmp_path):
    (tmp_path / "own_sizes.py").write_text("WIDTH = 7")
    (tmp_path / "recipe.py").write_text(
        "from ml_collections import ConfigDict\nfrom own_sizes import WIDTH\n"
        "def get_config(): return ConfigDict({'task': {}, 'model': {'hidden_features': WIDTH}, 'training': {}})\n"
    )
    config = read(str(tmp_path / "recipe.py"))
    assert config.model.hidden_features == 7 and config.folder == str(tmp_path)


def test_a_recipe_of_this_package_needs_no_folder():
    assert "folder" not in read(str(ROOT / "launch/configs/dictionary.py"))


def test_an_error_in_a_module_of_the_user_is_reported_with_its_place(tmp_path):
    (tmp_path / "own_fault.py").write_text("def make(*, width):\n    raise TypeError('a wrong width')\n")
    config = {"task": {"name": "own_fault:make", "width": 1}, "model": {}, "training": {}, "folder": str(tmp_path)}
    with pytest.raises(ValueError, match="a wrong width") as error:
        build_parts(config)
    assert place_of(error.value) == f" ({tmp_path}/own_fault.py, line 2)"
    assert place_of(ValueError("of this program")) == ""


def test_the_place_may_be_in_a_package_of_the_user_but_not_in_this_program_or_a_library(tmp_path, monkeypatch):
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package/model.py").write_text("import jax\ndef make(*, width):\n    return jax.grad(width)(1)\n")
    monkeypatch.setattr("launch.runs.own._folders", folders := {sys.prefix})
    config = {"task": {"name": "own_package.model:make", "width": 1}, "model": {}, "training": {}}
    with pytest.raises(ValueError, match="Expected a callable") as error:
        build_parts(config | {"folder": str(tmp_path)})
    assert place_of(error.value) == f" ({tmp_path}/own_package/model.py, line 3)"
    folders ^= {str(tmp_path), str(ROOT)}
    assert f" ({__file__}, line" in place_of(error.value)


def test_a_project_or_data_that_have_moved_continue_their_run(tmp_path):
    """Places are no settings; the run records where they were found last."""
    config = {"task": {"name": "own_x:Task", "data_dir": "/old"}, "training": {"steps": 1}, "folder": "/old"}
    assert claim(tmp_path / "run", config)
    config["folder"] = "/new"
    assert not claim(tmp_path / "run", config)
    assert read_config(tmp_path / "run") == config
    moved = config | {"task": config["task"] | {"data_dir": "/new"}}
    assert not claim(tmp_path / "run", moved)
    assert read_config(tmp_path / "run") == moved
    assert without_seed(moved) == without_seed(config) == {"task": {"name": "own_x:Task"}, "training": {"steps": 1}}


@pytest.mark.parametrize(
    ("task", "expected"), [("Read", {"data_dir": "/new"}), ("make", {"data_dir": "/new"}), ("Drawn", {})]
)
def test_the_folder_of_data_replaces_the_default_one_of_an_own_task(tmp_path, task, expected):
    (tmp_path / "own_data.py").write_text(
        "import dataclasses\n\n\n@dataclasses.dataclass(frozen=True)\nclass Read:\n    data_dir: str = '/old'\n\n\n"
        "class Drawn:\n    pass\n\n\ndef make(*, data_dir=None):\n    return Read(data_dir)\n"
    )
    named = {"name": f"own_data:{task}"}
    claim(tmp_path / "run", {"task": named, "model": {}, "training": {}, "folder": str(tmp_path)})
    assert read_config(tmp_path / "run", "/new")["task"] == named | expected
    assert read_config(tmp_path / "run")["task"] == named


@pytest.mark.parametrize("left", ["checkpoints", "summary.json"])
def test_a_run_that_lost_its_config_is_not_taken_for_another(tmp_path, left):
    (tmp_path / left).mkdir()
    with pytest.raises(ValueError, match=rf"has {left} of a run, but no config.json; bring the file back"):
        claim(tmp_path, {"task": {}})
    assert not (tmp_path / "config.json").exists()


def test_a_recipe_may_name_and_import_a_file_recipe(tmp_path, monkeypatch):
    (tmp_path / "recipe.py").write_text("VALUE = 7\n\n\ndef make():\n    pass\n")
    text = "from ml_collections import ConfigDict\nfrom recipe import VALUE\n"
    text += "def get_config():\n    return ConfigDict({'task': {'name': 'recipe:make', 'value': VALUE}})\n"
    (tmp_path / "other.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = _run(str(tmp_path / "other.py"), [])
    assert config.task.value == 7 and callable(load(config.task.name, str(tmp_path)))


def test_numbers_of_numpy_are_plain_in_a_config_and_other_values_are_named():
    config = ConfigDict({"task": {"a": np.float32(0.5), "b": (np.int64(1), jnp.int32(2)), "c": None}})
    assert plain_config(config) == {"task": {"a": 0.5, "b": [1, 2], "c": None}}
    with pytest.raises(ValueError, match="task.f must be a number, a text, .*, got <built-in function len> of type"):
        plain_config(ConfigDict({"task": {"f": len}}))
