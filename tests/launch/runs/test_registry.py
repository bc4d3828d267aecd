"""Tests the registries: entries agree with the tasks and models they name, and unlisted models get their own colour."""

import importlib.util
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from launch.configs import dictionary
from launch.runs import build, memory_cells
from launch.runs.registry import MODELS, TASKS, ModelEntry, model_colours
from mnm_jax import MNMCell, WriteOptions, local_memory
from tasks.babi import Babi
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


def test_the_options_of_cell_memory_and_writes_are_settings():
    """Every option reaches its place; without options the cell is the one that is made by hand."""

    def build_cell(**options):
        settings = {"hidden_features": 5, "memory_features": 4, "memory_layers": 2, **options}
        return build.build_make_model({"name": "mnm-p", **settings}, Dictionary())(nnx.Rngs(0)).cell

    of_cell = {"heads": 2, "meta_window": 3, "interaction": "layer_norm", "read_first": True, "follow_keys": True}
    of_memory = {"step_size": "sum", "condition_on_key": True, "write_through": True, "use_bias": True}
    of_writes = {"key_norm": "l2", "max_norm": 2.0, "inner_steps": 2, "never_worse": True}
    found = build_cell(**of_cell, memory_width=6)
    assert found.meta_window == 3 and found.read_first and found.norm is not None and found.follow is not None
    assert [leaf.shape for leaf in found.memory_params.get_value().weights] == [(4, 6), (6, 4)]
    for group, options in (({}, of_memory), ({"options": WriteOptions(**of_writes)}, of_writes)):
        memory = local_memory(4, 4, hidden_sizes=(4,), **(group or options))
        assert build_cell(**options).memory == memory != build_cell().memory
    features = Dictionary().input_features
    plain, rngs = local_memory(4, 4, hidden_sizes=(4,)), nnx.Rngs(0)
    Dictionary().encoder(rngs)
    expected = nnx.state(MNMCell(features, 5, plain, rngs=rngs), nnx.Param)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(build_cell(), nnx.Param), expected)


def test_an_option_with_two_places_is_refused():
    def init_cell(self, *, step_size: str = "normalised"):
        pass

    with pytest.raises(ValueError, match=r"an option has one place, got \['step_size'\], \['step_size', "):
        memory_cells._with_options(lambda: None, init_cell, local_memory)


def test_the_memory_of_the_chained_cell_may_have_hidden_layers():
    task = Babi(data_dir="read when it is used", entities=2, entity_features=4)
    make = MODELS["chain-g"].make
    sizes = {"features": task.input_features, "entities": 2, "entity_features": 4, "hidden_features": 3}
    for options, shapes in (
        ({}, [(32, 4)]),
        ({"memory_layers": 2, "memory_width": 6, "relation_features": 2}, [(8, 6), (6, 4)]),
    ):
        cell = make(**sizes, **options, rngs=nnx.Rngs(0))
        assert [leaf.shape for leaf in cell.memory_params.get_value().weights] == shapes


def test_the_settings_of_every_entry_are_complete():
    for name, entry in MODELS.items():
        task = Dictionary()
        if name.startswith("chain"):
            with pytest.raises(ValueError, match=f"{name} needs a task with entities"):
                build.build_make_model({"name": name, **entry.settings}, task)
        else:
            assert build.count_parameters(build.build_make_model({"name": name, **entry.settings}, task)) > 1000
