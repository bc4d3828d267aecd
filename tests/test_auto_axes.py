"""Tests cells and layers on inputs that are placed on a mesh whose axes are Explicit, JAX's default."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding

from mnm_jax import (
    LSTMCell,
    MNMCell,
    NeuralMemoryLayer,
    WriteOptions,
    local_memory,
    matrix_memory,
    unroll,
    unroll_memory,
)

T, B, D = 5, 4, 3
MEMORY = local_memory(4, 4, hidden_sizes=(4,))


def make_cell():
    return MNMCell(D, 5, MEMORY, rngs=nnx.Rngs(0))


def make_layer():
    memory = matrix_memory(4, 4, options=WriteOptions(key_norm="l2", forget=True))
    return NeuralMemoryLayer(D, memory, heads=2, chunk=4, rngs=nnx.Rngs(0))


def run_cell(cell, inputs, mask):
    return unroll(cell, None, inputs, mask=mask)


def run_batch_first(cell, inputs, mask):
    return unroll(cell, None, jnp.swapaxes(inputs, 0, 1), mask=mask.T, time_major=False)


def run_twice(cell, inputs, mask):
    carry, _ = unroll(cell, None, inputs[:2], mask=mask[:2])
    return unroll(cell, carry, inputs[2:], mask=mask[2:])


def run_layer(layer, inputs, mask):
    return layer(None, inputs, mask=mask)


def run_step(layer, inputs, mask):
    return layer.step(None, inputs[0], mask=mask[3], reset=mask[1])


def run_tokens(params, inputs, mask):
    keys = jnp.concatenate([inputs, inputs[..., :1]], -1)[:, :, None]
    state, _, reads = unroll_memory(MEMORY, params, None, keys, jnp.sin(keys), inputs[..., 0], keys, mask=mask)
    return state, reads


KINDS = {
    "cell": (make_cell, run_cell),
    "cell, batch first": (make_cell, run_batch_first),
    "cell, continued": (make_cell, run_twice),
    "LSTM": (lambda: LSTMCell(D, 5, rngs=nnx.Rngs(0)), run_cell),
    "layer": (make_layer, run_layer),
    "one step of a layer": (make_layer, run_step),
    "given tokens": (lambda: MEMORY.init(jax.random.key(0)), run_tokens),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_is_divided_explicitly_gives_the_same(kind):
    make, run = KINDS[kind]
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    inputs, mask = jax.random.normal(jax.random.key(1), (T, B, D)), jnp.ones((T, B), bool).at[3:, 1].set(False)
    placed = jax.device_put((inputs, mask), NamedSharding(mesh, jax.P(None, "data")))

    @jax.jit
    def compute(module, inputs, mask):
        def loss(module, inputs):
            carry, outputs = run(module, inputs, mask)
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves((carry, outputs))), (carry, outputs)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(module, inputs)

    module = make()
    expected, found = compute(module, inputs, mask), compute(module, *placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    for output in jax.tree.leaves(found[0][1][1]):
        assert "data" in jax.typeof(output).sharding.spec


def test_parameters_that_are_placed_explicitly_and_inputs_that_are_not():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    cell, inputs = LSTMCell(D, 4, rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (T, B, D))
    _, expected = unroll(cell, None, inputs)
    graphdef, params = nnx.split(cell)
    places = jax.tree.map(lambda x: NamedSharding(mesh, jax.P(None, "data") if x.ndim == 2 else jax.P()), params)
    with jax.set_mesh(mesh):
        run = jax.jit(lambda params: unroll(nnx.merge(graphdef, params), None, inputs)[1])
        np.testing.assert_allclose(run(jax.device_put(params, places)), expected, atol=1e-6)


def write(cell, keys, rate):
    params = cell.memory_params.get_value()
    return cell.memory.write(params, cell.memory.start(params, B), keys, jnp.sin(keys), rate)


def write_read(cell, keys, rate):
    params = cell.memory_params.get_value()
    return cell.memory.write_read(params, cell.memory.start(params, B), keys, jnp.sin(keys), rate, keys)


def call(cell, keys, rate):
    return cell(cell.initialize_carry((B, D)), keys[:, 0, :D])


@pytest.mark.parametrize("run", [write, write_read, call])
@pytest.mark.parametrize("options", [WriteOptions(), WriteOptions(key_norm="l2", max_norm=1.0)], ids=["plain", "norms"])
def test_single_operations_run_on_a_batch_that_is_divided_explicitly(run, options):
    """Without `jax.jit`, where JAX refuses some operations on empty arrays and on the divided axis."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    memory = local_memory(4, 4, hidden_sizes=(4,), options=options)
    cell = MNMCell(D, 5, memory, heads=2, read_first=True, rngs=nnx.Rngs(0))
    given = jax.random.normal(jax.random.key(1), (B, 2, 4)), jnp.full(B, 0.5)
    expected, found = run(cell, *given), run(cell, *jax.device_put(given, NamedSharding(mesh, jax.P("data"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    for leaf in jax.tree.leaves(found):
        assert jax.typeof(leaf).sharding.spec[0] == "data"


def sum_of_squares(cell, inputs, form):
    return jnp.sum(unroll(cell, None, inputs, form=form)[1].features ** 2)


differentiate = jax.jit(jax.value_and_grad(sum_of_squares), static_argnums=2)


@pytest.mark.parametrize("form", ["plain", "reversible", "factored"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_program_per_device_over_one_of_two_axes(kind, form):
    """`jax.shard_map` with `axis_names` leaves the other axis as it is."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2, devices=jax.devices()[:4])
    cell, inputs = make_cell(), jax.random.normal(jax.random.key(1), (T, B, D))

    def divided(cell, inputs):
        total = lambda cell, inputs: jax.lax.psum(sum_of_squares(cell, inputs, form), "data")  # noqa: E731
        specs = {"in_specs": (jax.P(), jax.P(None, "data")), "out_specs": jax.P()}
        return jax.shard_map(total, mesh=mesh, axis_names={"data"}, **specs)(cell, inputs)

    found, expected = jax.jit(jax.value_and_grad(divided))(cell, inputs), differentiate(cell, inputs, form)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
