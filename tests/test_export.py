"""Tests that an exported step computes what the model does, for any batch, and that weights are restored exactly."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch.configs import training_section
from launch.runs.build import build_parts
from launch.runs.export import export_run, ship_run
from launch.runs.load import load_trained
from mnm_jax import (
    LSTMCell,
    MNMCell,
    NeuralMemoryLayer,
    WriteOptions,
    gradient_memory,
    local_memory,
    matrix_memory,
    unroll,
    unroll_memory,
)
from mnm_jax.export import export_step, load_safetensors, save_safetensors, to_arrays
from mnm_jax.training import save_params, split_model

pytest.importorskip("safetensors", reason="the package safetensors is not installed: pip install '.[export]'")
D = 3


def make_cell(seed=0, factory=gradient_memory, **options):
    return MNMCell(D, 6, factory(4, 4, hidden_sizes=(5,)), heads=2, rngs=nnx.Rngs(seed), **options)


@pytest.mark.parametrize(("factory", "follow_keys"), [(gradient_memory, False), (local_memory, True)])
def test_a_step_is_exported_for_every_platform_and_any_batch(factory, follow_keys):
    cell = make_cell(factory=factory, meta_window=2, follow_keys=follow_keys)
    exported = export_step(cell, cell.initialize_carry((1, D)), jnp.zeros((1, D)))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    step, compiled = jax.export.deserialize(exported.serialize()), jax.jit(lambda cell, *arguments: cell(*arguments))
    for batch in (1, 5):
        carry, x = cell.initialize_carry((batch, D)), jax.random.normal(jax.random.key(0), (3, batch, D))
        exported_carry = to_arrays(carry)
        for t in range(3):
            carry, output = compiled(cell, carry, x[t])
            exported_carry, features = step.call(to_arrays(cell), exported_carry, x[t])
            np.testing.assert_allclose(features, output.features, rtol=1e-5, atol=1e-6)
        for name, leaf in to_arrays(carry).items():
            np.testing.assert_allclose(exported_carry[name], leaf, rtol=1e-5, atol=1e-6)


def test_a_token_of_a_layer_is_exported_for_any_batch():
    """The carry has a window; the exported steps give the whole sequence."""
    memory = matrix_memory(3, 2, options=WriteOptions("l2", forget=True))
    layer = NeuralMemoryLayer(D, memory, heads=2, chunk=3, convolution=2, rngs=nnx.Rngs(0))
    exported = export_step(layer, layer.initialize_carry((1, D)), jnp.zeros((1, D)), platforms=("cpu",))
    carry, x = to_arrays(layer.initialize_carry((5, D))), jax.random.normal(jax.random.key(0), (3, 5, D))
    _, expected = jax.jit(lambda layer, x: layer(None, x))(layer, x)
    for t in range(3):
        carry, outputs = exported.call(to_arrays(layer), carry, x[t])
        np.testing.assert_allclose(outputs, expected[t], rtol=1e-5, atol=1e-6)


class WithResidual(NeuralMemoryLayer):
    def step(self, carry, inputs, **flags):
        carry, outputs = super().step(carry, inputs, **flags)
        return carry, inputs + outputs


def test_the_step_of_a_subclass_of_a_layer_is_exported():
    layer = WithResidual(D, matrix_memory(3, 2), rngs=nnx.Rngs(0))
    carry, x = layer.initialize_carry((1, D)), jax.random.normal(jax.random.key(0), (1, D))
    exported = export_step(layer, carry, x, platforms=("cpu",))
    _, expected = jax.jit(WithResidual.step)(layer, carry, x)
    np.testing.assert_allclose(exported.call(to_arrays(layer), to_arrays(carry), x)[1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", ["plain", "gated", "never_worse", "layer", "alone"])
def test_new_sequences_begin_in_a_batch_of_any_size(model):
    memory = matrix_memory(4, 4, options=WriteOptions(forget=model == "gated", never_worse=model == "never_worse"))
    cell = MNMCell(D, 6, memory, rngs=nnx.Rngs(0))
    layer = NeuralMemoryLayer(D, matrix_memory(4, 4), chunk=2, rngs=nnx.Rngs(0))
    params = memory.init(jax.random.key(0))

    def alone(x):
        keys = jnp.concatenate([x, x[..., :1]], -1)[:, :, None]
        return unroll_memory(memory, params, None, keys, keys, jnp.ones(x.shape[:2]), keys)[2]

    run = {
        "plain": lambda x: unroll(cell, None, x, form="plain")[1].features,
        "gated": lambda x: unroll(cell, None, x)[1].features,
        "never_worse": lambda x: unroll(cell, None, x, form="plain")[1].features,
        "layer": lambda x: layer(None, x)[1],
        "alone": alone,
    }[model]
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("4, b, 3"), jnp.float32)
    exported = jax.export.export(jax.jit(run))(shape)
    x = jax.random.normal(jax.random.key(0), (4, 5, D))
    np.testing.assert_allclose(exported.call(x), jax.jit(run)(x), rtol=1e-5, atol=1e-6)


def test_a_carry_without_a_common_batch_is_refused():
    cell = make_cell()
    with pytest.raises(ValueError, match=r"must be the batch, the same in all, got \[\(1,\), \(2,\)\]"):
        export_step(cell, cell.initialize_carry((1, D)), jnp.zeros((2, D)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_are_restored_to_the_bit(tmp_path, dtype):
    cell, other = (LSTMCell(D, 6, param_dtype=dtype, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    save_safetensors(tmp_path / "w.safetensors", to_arrays(cell))
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
    load_safetensors(tmp_path / "w.safetensors", other)
    for a, b in zip(jax.tree.leaves(nnx.state(other)), jax.tree.leaves(nnx.state(cell)), strict=True):
        assert a.dtype == dtype
        np.testing.assert_array_equal(a, b)


def test_weights_stay_on_their_devices(tmp_path):
    """One array is divided over two devices; the others may follow it, as in a new model."""
    cell, other = make_cell(0), make_cell(1)
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[-2:])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    other.interaction.kernel.set_value(jax.device_put(other.interaction.kernel.get_value(), sharding))
    save_safetensors(tmp_path / "w.safetensors", to_arrays(cell))
    load_safetensors(tmp_path / "w.safetensors", other)
    found = other.interaction.kernel.get_value()
    assert found.sharding == sharding
    np.testing.assert_array_equal(found, cell.interaction.kernel.get_value())
    assert not other.rate.bias.get_value().committed


class Varied(nnx.Module):
    """A module with dropout and with arrays of other kinds than floating-point numbers."""

    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.linear, self.dropout = nnx.Linear(2, 2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.used, self.count = nnx.Variable(jnp.array([True, seed > 0])), nnx.Variable(jnp.uint32(2**32 - 1 - seed))


def test_random_state_is_no_weight_and_flags_and_counts_are(tmp_path):
    model, other = Varied(0), Varied(1)
    save_safetensors(tmp_path / "w.safetensors", to_arrays(model))
    load_safetensors(tmp_path / "w.safetensors", other)
    for name, array in to_arrays(other).items():
        np.testing.assert_array_equal(array, to_arrays(model)[name])
        assert array.dtype == to_arrays(model)[name].dtype
    assert list(to_arrays(model)) == ["count", "linear.bias", "linear.kernel", "used"]
    assert other.dropout.rngs.key[...] != model.dropout.rngs.key[...]  # its own

    def step(model, carry, x):
        return carry, model.dropout(model.linear(x))

    with pytest.raises(ValueError, match=r"draws random numbers, which an export would repeat .* use model.eval\(\)"):
        export_step(model, jnp.zeros((1, 1)), jnp.zeros((1, 2)), step, platforms=("cpu",))
    model.eval()
    exported = export_step(model, jnp.zeros((1, 1)), jnp.zeros((1, 2)), step, platforms=("cpu",))
    x = jax.random.normal(jax.random.key(0), (3, 2))
    outputs = exported.call(to_arrays(model), {"": jnp.zeros((3, 1))}, x)[1]
    np.testing.assert_allclose(outputs, jax.jit(model.linear)(x), rtol=1e-6)


class Embedded(nnx.Module):
    """Adds an encoding of the position, which is kept in a variable, an attribute or the carry."""

    def __init__(self):
        self.linear, self.norm = nnx.Linear(D, D, rngs=nnx.Rngs(0)), nnx.BatchNorm(D, rngs=nnx.Rngs(0))
        self.position, self.steps = nnx.Variable(jnp.int32(0)), 0

    def in_variable(self, carry, x):
        self.position[...] += 1
        return carry, self.linear(x) + self.position[...].astype(x.dtype)

    def in_attribute(self, carry, x):
        self.steps += 1
        return carry, self.linear(x) + self.steps

    def in_new_variable(self, carry, x):
        self.cache = nnx.Variable(x)
        return carry, self.linear(x)

    def in_statistics(self, carry, x):
        return carry, self.norm(x)

    def in_carry(self, carry, x):
        self.seen = nnx.Intermediate(x)
        return carry + 1, self.linear(x) + carry[:, None].astype(x.dtype)


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (Embedded.in_variable, "'position'"),
        (nnx.jit(Embedded.in_variable), "'position'"),
        (Embedded.in_attribute, "attributes of the model"),
        (Embedded.in_new_variable, "'cache'"),
        (Embedded.in_statistics, "'norm.mean'"),
    ],
)
def test_a_step_that_changes_the_model_is_refused(step, what):
    with pytest.raises(ValueError, match=f"the step changes {what}, which an export does not pass on: keep it in the"):
        export_step(Embedded(), jnp.zeros(1, jnp.int32), jnp.zeros((1, D)), step, platforms=("cpu",))


@pytest.mark.parametrize("transform", [lambda step: step, nnx.jit, nnx.remat, lambda step: nnx.jit(nnx.remat(step))])
def test_a_step_that_counts_in_the_carry_is_exported(transform):
    """Also if a transformation returns all variables of the model, unchanged, as new values."""
    model, carry = Embedded(), jnp.zeros(2, jnp.int32)
    model.in_carry(carry, jnp.zeros((2, D)))  # leaves an intermediate in the model
    exported = export_step(model, carry, jnp.zeros((2, D)), transform(Embedded.in_carry), platforms=("cpu",))
    carry, x = {"": carry}, jnp.ones((2, D))
    for count in range(3):
        carry, outputs = exported.call(to_arrays(model), carry, x)
        np.testing.assert_allclose(outputs, jax.jit(model.linear)(x) + count, rtol=1e-6)


def test_names_of_arrays(tmp_path):
    with pytest.raises(ValueError, match="must differ, got 'a.b' twice"):
        to_arrays({"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}})
    assert list(to_arrays({"key": jnp.ones(1), "value": jnp.ones(1)})) == ["key", "value"]
    names = set(to_arrays(make_cell()))
    assert {"memory_params.weights[0]", "interaction.kernel", "rate.bias"} <= names
    assert "memory.weights[0]" in to_arrays(make_cell().initialize_carry((1, D)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("rate.bias"), "lacks rate.bias: it belongs to another model"),
        (lambda a: a.update(more=jnp.zeros(1)), "has unknown more"),
        (lambda a: a.update({"rate.bias": jnp.zeros(2)}), r"rate.bias as float32\[2\], this model as float32\[1\]"),
    ],
)
def test_weights_of_another_model_change_nothing(tmp_path, change, message):
    cell, path = make_cell(), tmp_path / "w.safetensors"
    arrays = to_arrays(make_cell(1))
    change(arrays)
    save_safetensors(path, arrays)
    before = to_arrays(cell)
    with pytest.raises(ValueError, match=message):
        load_safetensors(path, cell)
    for name, array in to_arrays(cell).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_file_cut_short_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    save_safetensors(path, to_arrays(make_cell()))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="w.safetensors is damaged"):
        load_safetensors(path, make_cell())


STRANGER = """
import sys, jax, numpy as np, safetensors.flax
step = jax.export.deserialize(bytearray(open(f"{sys.argv[1]}/step.stablehlo", "rb").read()))
weights, carry = (safetensors.flax.load_file(f"{sys.argv[1]}/{name}.safetensors") for name in ("weights", "carry"))
inputs = np.load(f"{sys.argv[1]}/inputs.npy")
logits = []
for x in inputs:
    carry, y = step.call(weights, carry, x)
    logits.append(y)
assert not {"mnm_jax", "launch"} & set(sys.modules), "the library was needed"
np.save(f"{sys.argv[1]}/logits.npy", np.stack(logits))
"""


def test_a_run_is_exported_for_programs_without_this_library(tmp_path):
    config = {
        "task": {"name": "dictionary", "length": 1, "support": 2, "queries": 2, "mixed": False},
        "model": {"name": "mnm-p", "hidden_features": 8, "memory_features": 4, "memory_layers": 1},
        "training": training_section(steps=1, batch_size=8, seed=3, seeds=2, eval_every=1, learning_rate=1e-3),
    }
    task, make_model, _ = build_parts(config)
    graphdef = split_model(make_model)
    seeds = [nnx.state(make_model(nnx.Rngs(seed)), nnx.Param) for seed in (3, 4)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    save_params(tmp_path / "run", jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds), 1)
    assert [path.name for path in export_run(tmp_path / "run", tmp_path / "out", seed=4)] == [
        "step.stablehlo",
        "weights.safetensors",
        "carry.safetensors",
    ]
    model = nnx.merge(graphdef, seeds[1])
    batch = task.sample(jax.random.key(0), 1)
    np.save(tmp_path / "out" / "inputs.npy", batch.inputs)
    subprocess.run([sys.executable, "-c", STRANGER, str(tmp_path / "out")], check=True, cwd=tmp_path)
    expected = model(batch.inputs, mask=batch.mask).logits
    real = np.asarray(batch.mask[:, 0])
    np.testing.assert_allclose(np.load(tmp_path / "out" / "logits.npy")[real], expected[real], rtol=1e-4, atol=1e-5)
    for name in ("summary.json", "vocabulary.json"):
        (tmp_path / "run" / name).write_text("{}")
    files = ship_run(tmp_path / "run", tmp_path / "small")
    assert [path.name for path in files] == ["config.json", "summary.json", "vocabulary.json", "params.safetensors"]
    _, shipped = load_trained(tmp_path / "small", seed=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), nnx.state(shipped), seeds[1])
    with pytest.raises(ValueError, match=r"run.* would be read in place of the new weights"):
        ship_run(tmp_path / "run", tmp_path / "run")
    assert not (tmp_path / "run/params.safetensors").exists()
    with pytest.raises(ValueError, match="seed must be one of the run's seeds, 3, 4, in .*run, got seed=2"):
        export_run(tmp_path / "run", tmp_path / "out", seed=2)


def test_the_step_of_a_task_that_resets_the_controller_takes_the_flag(tmp_path):
    folder = tmp_path / "tasks_1-20_v1-2/en"
    folder.mkdir(parents=True)
    story = b"1 Mary moved to the bathroom.\n2 John went to the hall.\n3 Where is Mary?\tbathroom\t1\n"
    for split in ("train", "test"):
        (folder / f"qa1_example_{split}.txt").write_bytes(10 * story)
    files = {"tasks": [1], "size": "1k", "data_dir": str(tmp_path), "cache_dir": str(tmp_path)}
    steps = {"apart": True, "think_steps": 1, "controller": "sentence"}
    config = {
        "task": {"name": "babi", "embedding_features": 8, **files, **steps},
        "model": {"name": "mnm-p", "hidden_features": 8, "memory_features": 4, "memory_layers": 1},
        "training": training_section(steps=1, batch_size=2, learning_rate=1e-3),
    }
    task, make_model, _ = build_parts(config)
    model = make_model(nnx.Rngs(0))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    save_params(tmp_path / "run", jax.tree.map(lambda leaf: leaf[None], nnx.state(model, nnx.Param)), 1)
    export_run(tmp_path / "run", tmp_path / "out")
    step = jax.export.deserialize(bytearray((tmp_path / "out/step.stablehlo").read_bytes()))
    batch = next(iter(task.evaluations("test", 1)[""]()))
    np.testing.assert_array_equal(batch.reset_controller[:, 0], [True, True, True, False])  # not at the think step
    weights, carry, logits = to_arrays(model), to_arrays(model.start(batch.mask.shape[1])), []
    for inputs in zip(batch.inputs, batch.reset_controller, strict=True):
        carry, y = step.call(weights, carry, inputs)
        logits.append(y)
    np.testing.assert_allclose(np.stack(logits), model(batch.inputs, **batch.flags).logits, rtol=1e-4, atol=1e-5)


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    for name in ("safetensors", "safetensors.flax"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: save_safetensors(tmp_path / "w", {}), lambda: load_safetensors(tmp_path / "w", make_cell())):
        with pytest.raises(ImportError, match=r"safetensors.*: run pip install 'mnm_jax\[export\]'\."):
            call()


@pytest.mark.parametrize("package", ["flatbuffers", "safetensors"])
def test_a_missing_package_is_named_with_its_extra_before_any_work(monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*: run pip install 'mnm_jax\[export\]'"):
        export_run(tmp_path / "no run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_donated_carry_is_updated_in_place():
    """In the program of a step from `nnx.split`, and in an exported step, every output of the carry is an input."""
    cell = make_cell()
    carry, inputs = cell.initialize_carry((2, D)), jnp.zeros((2, D))
    graphdef, params = nnx.split(cell)
    exported = export_step(cell, carry, inputs, platforms=("cpu",))
    steps = [
        (lambda params, carry, x: nnx.merge(graphdef, params)(carry, x), (params, carry, inputs)),
        (exported.call, (to_arrays(cell), to_arrays(carry), inputs)),
    ]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
    for step, arguments in steps:
        assert jax.jit(step).lower(*arguments).compile().memory_analysis().alias_size_in_bytes == 0
        assert jax.jit(step, donate_argnums=1).lower(*arguments).compile().memory_analysis().alias_size_in_bytes == size
