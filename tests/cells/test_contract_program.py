"""Tests every cell as a program: compiled once, on several devices, saved, exported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import testing, unroll
from mnm_jax.cells import split_output
from mnm_jax.training import TrainState, restore_checkpoint, save_checkpoint

T, D = 3, 6


def test_new_numbers_and_an_equal_cell_compile_nothing_anew(make):
    testing.check_compilation(make.__wrapped__)  # uncached, so that the second cell is another object


def test_eight_devices_give_the_numbers_of_one(make, x64):
    assert len(jax.devices()) == 8
    testing.check_devices(make(jnp.float64))


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


@pytest.mark.parametrize("check", [testing.check_export, testing.check_pickle], ids=lambda check: check.__name__)
def test_saved_in_another_form(check, make):
    check(make(jnp.float32))
