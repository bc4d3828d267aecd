"""What every cell keeps to as a program: compiled once, on several devices, saved, exported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from jax.sharding import PartitionSpec as P

from mnm_jax import unroll
from mnm_jax.cells import split_output
from mnm_jax.training import TrainState, restore_checkpoint, save_checkpoint

T, D = 3, 6


def test_new_numbers_compile_nothing_anew(make, common):
    traces = []

    @jax.jit
    def run(cell, carry, x):
        traces.append(x.shape)
        return unroll(cell, carry, x)

    cell, x = make(jnp.float32), common.inputs(jnp.float32, shape=(T, 2, D))
    first, _ = run(cell, cell.initialize_carry((2, D)), x)
    second, _ = run(cell, first, 2 * x)  # the carry that came out goes in, as in a stream
    trained = jax.tree.map(lambda leaf: 0.5 * leaf, cell)
    run(trained, second, x)
    assert traces == [(T, 2, D)]


def test_eight_devices_give_the_numbers_of_one(make, common, x64):
    cell, x = make(jnp.float64), common.inputs(shape=(T, 8, D))

    @jax.jit
    def run(cell, x):
        def value(cell, x):
            y = common.features(cell, x)
            return jnp.sum(jnp.sin(y) * jnp.arange(8.0)[None, :, None]), y  # every example counts differently

        (_, y), gradient = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(cell, x)
        return y, jax.tree.leaves(gradient)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    divided = jax.device_put(x, jax.NamedSharding(mesh, P(None, "data")))
    everywhere = jax.device_put(cell, jax.NamedSharding(mesh, P()))
    found = run(everywhere, divided)
    assert {shard.data.shape[:2] for shard in found[0].addressable_shards} == {(T, 1)}
    expected = run(cell, x)
    assert len(expected[0].addressable_shards) == 1
    common.close(jax.device_get(found), jax.device_get(expected))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_carry_and_parameters_survive_a_checkpoint(make, common, tmp_path, dtype):
    cell, x = make(dtype), common.inputs(dtype, shape=(2 * T, 2, D))
    run = jax.jit(lambda cell, carry, x: unroll(cell, carry, x))
    carry, _ = run(cell, cell.initialize_carry((2, D)), x[:T])
    number = jnp.int32(T)
    state = TrainState(nnx.state(cell, nnx.Param), carry, jax.random.key(5), number, number, number)
    save_checkpoint(tmp_path, T, state, {})

    graphdef, other = nnx.split(make(dtype, seed=1))
    like = jax.eval_shape(lambda: state._replace(params=other, opt_state=cell.initialize_carry((2, D))))
    saved = restore_checkpoint(tmp_path, like).state
    continued = run(nnx.merge(graphdef, saved.params), saved.opt_state, x[T:])
    common.equal(continued, run(cell, carry, x[T:]))
    strange = split_output(run(nnx.merge(graphdef, other), saved.opt_state, x[T:])[1])[0]
    assert np.any(strange != split_output(continued[1])[0])


def test_an_exported_step_gives_the_same_numbers(make, common):
    """Exported over flat leaves: the file then needs no registration of the cell's own types to be read."""
    cell, x = make(jnp.float32), common.inputs(jnp.float32, shape=(2, D))
    (carry, _) = cell(cell.initialize_carry((2, D)), x)
    leaves, tree = jax.tree.flatten((cell, carry, x))

    @jax.jit
    def step(*leaves):
        cell, carry, x = jax.tree.unflatten(tree, leaves)
        return jax.tree.leaves(cell(carry, x))

    file = export.export(step)(*leaves).serialize()
    common.equal(export.deserialize(file).call(*leaves), step(*leaves))
