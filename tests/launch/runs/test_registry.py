"""Tests the registries: entries agree with the tasks and models they name, and unlisted models get their own colour."""

import importlib.util
import re
import subprocess
import sys

import pytest
from flax import nnx

from launch.configs import dictionary
from launch.runs import build
from launch.runs.registry import MODELS, TASKS, ModelEntry, model_colours
from tasks.dictionary import Dictionary

HEAVY = ("grain", "tensorflow_datasets", "array_record", "tasks.babi", "tasks.maze", "tasks.algorithmic")


def test_a_task_has_the_name_of_its_entry():
    required = {"babi": {"data_dir": "read when it is used"}}
    for name in TASKS:
        if name == "gymnax" and importlib.util.find_spec("gymnax") is None:
            continue
        assert build.build_task({"name": name, **required.get(name, {})}).name == name


def test_building_one_task_imports_no_other():
    code = "import sys; from launch.runs.build import build_task; build_task({'name': 'dictionary'})\n"
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("registry", [MODELS, TASKS], ids=["models", "tasks"])
def test_every_entry_has_a_formula_of_its_own(registry):
    assert len({entry.formula for entry in registry.values()}) == len(registry)
    assert all("\n" not in entry.formula and "`" not in entry.formula for entry in registry.values())


def test_every_model_has_a_colour_of_its_own():
    assert len({entry.colour for entry in MODELS.values()}) == len(MODELS)
    assert all(re.fullmatch("#[0-9A-F]{6}", entry.colour) for entry in MODELS.values())


def test_a_foreign_model_keeps_its_colour_unless_another_one_has_it():
    (alone,) = model_colours(["gru"]).values()
    assert model_colours(["lstm", "gru", "mnm-p"])["gru"] == alone
    foreign = model_colours([f"model {number}" for number in range(6)])
    assert len(set(foreign.values())) == 6
    assert not set(foreign.values()) & {entry.colour for entry in MODELS.values()}


def test_a_new_model_is_one_entry(monkeypatch):
    def make(*, features, hidden_features, rngs):
        return nnx.GRUCell(features, hidden_features, rngs=rngs)

    entry = ModelEntry(make=make, settings={"hidden_features": 5}, colour="#123456", formula="a formula")
    monkeypatch.setitem(MODELS, "gru", entry)
    config = dictionary.get_config("gru")
    assert config.model.to_dict() == {"name": "gru", "hidden_features": 5}
    make_model = build.build_make_model(config.model, Dictionary())
    assert make_model(nnx.Rngs(0)).cell.hidden_features == 5
    with pytest.raises(ValueError, match="model gru has an unknown key 'heads'; known: hidden_features"):
        build.build_make_model({"name": "gru", "hidden_features": 5, "heads": 2}, Dictionary())


def test_the_settings_of_every_entry_are_complete():
    for name, entry in MODELS.items():
        task = Dictionary()
        if name.startswith("chain"):
            with pytest.raises(ValueError, match=f"{name} needs a task with entities"):
                build.build_make_model({"name": name, **entry.settings}, task)
        else:
            assert build.count_parameters(build.build_make_model({"name": name, **entry.settings}, task)) > 1000
