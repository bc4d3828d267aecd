"""Tests the contracts of `mnm_jax.testing` for every cell, and further properties of this library's own cells."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mnm_jax
from mnm_jax import MemoryCell, MNMCell, gradient_memory, local_memory, testing, unroll
from mnm_jax.cells import split_output
from mnm_jax.testing._cell_runs import cell_inputs, flagged
from mnm_jax.training import TrainState, restore_checkpoint, save_checkpoint

B, D = 3, 6
NAMES = ["mnm-p", "mnm-g", "mnm-p-window", "mnm-p-follow", "mnm-p-gated", "chain-p", "chain-g"]
NAMES += ["plastic", "neuromodulated", "rnn", "lstm", "salu", "ntm", "dnc"]
DTYPES = [jnp.float32, jnp.bfloat16, jnp.float64]


def test_every_exported_cell_is_here(common):
    assert set(NAMES) == set(common.CELLS)
    exported = {getattr(mnm_jax, name) for name in mnm_jax.__all__ if name.endswith("Cell")}
    assert exported - {MemoryCell} == {type(nnx.eval_shape(make.__wrapped__)) for make in common.CELLS.values()}


def cells(*fast):
    """Runs a test with the cells of these names, and with all others among the slow tests."""
    marked = [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in NAMES]
    return pytest.mark.parametrize("make", marked, indirect=True)


@cells("mnm-p", "lstm")
def test_all_contracts(make):
    testing.check_cell(make.__wrapped__)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_single_precision_contracts_in_every_dtype_and_20_000_streamed_steps(make, dtype, x64):
    cell = make(dtype)
    testing.check_cell_carry(cell)
    testing.check_cell_extremes(cell)
    testing.check_cell_donation(cell)
    testing.check_cell_stream(cell, steps=20_000)


def test_dtypes_and_the_number_of_features(make, common):
    for param_dtype, dtype in [(jnp.float32, None), (jnp.bfloat16, None), (jnp.float32, jnp.bfloat16)]:
        cell = nnx.eval_shape(lambda: make.__wrapped__(param_dtype, dtype=dtype))  # noqa: B023
        assert (cell.param_dtype, cell.dtype) == (param_dtype, dtype or param_dtype)
    x = jax.ShapeDtypeStruct((2, 1, D), jnp.float32)
    assert jax.eval_shape(common.features, cell, x).shape[-1] == cell.out_features


def test_equal_cells_are_equal_trees_and_survive_pickle(make):
    cell, equal = make(jnp.float32), make.__wrapped__(jnp.float32)
    restored = pickle.loads(pickle.dumps(cell))
    for other in (equal, restored):
        assert jax.tree.structure(other) == jax.tree.structure(cell)
        assert nnx.graphdef(other) == nnx.graphdef(cell)
        assert hash(nnx.graphdef(other)) == hash(nnx.graphdef(cell))
    jax.tree.map(np.testing.assert_array_equal, restored, cell)
    another = nnx.eval_shape(lambda: make.__wrapped__(jnp.float32, hidden=3))
    assert jax.tree.structure(another) != jax.tree.structure(cell)


@cells("mnm-p", "chain-p", "lstm", "plastic")
def test_bfloat16_computation_keeps_float32_parameters_and_approximates_their_numbers(make, common):
    """Gradients of float32 parameters are float32; the norms of the rounding errors are small.

    A gradient that is ill-conditioned may be off by as much as rounding the inputs and parameters alone moves it, five
    times over.
    Memories have one head: the ridge with which overlapping keys of several heads are solved depends on the dtype. The
    chained cell has one hop: with tiny codes every hop multiplies rounding errors.
    """
    cell = nnx.eval_shape(make.__wrapped__)
    one = {name: 1 for name in ("heads", "hops") if hasattr(cell, name)}
    half, whole = make(jnp.float32, dtype=jnp.bfloat16, **one), make(jnp.float32, **one)
    x = common.inputs(jnp.float32)

    def loss(cell, x):
        features = common.features(cell, x)
        return jnp.mean(features.astype(jnp.float32) ** 2), features

    def run(cell, x):
        gradient, features = jax.jit(jax.grad(loss, has_aux=True))(cell, x)
        return np.asarray(features, np.float32), [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]

    (found, of_half), (expected, of_whole) = run(half, x), run(whole, x)
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))  # noqa: E731
    assert norm(found - expected) < 0.05 * norm(expected)
    assert {leaf.dtype for leaf in of_half} == {jnp.dtype(jnp.float32)}
    error = norm(jax.tree.map(np.subtract, of_half, of_whole))
    if error >= 0.1 * norm(of_whole):
        rounded = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(leaf.dtype), tree)  # noqa: E731
        of_rounded = run(rounded(whole), rounded(x))[1]
        assert error < 5 * norm(jax.tree.map(np.subtract, of_rounded, of_whole))


@cells("mnm-p", "lstm", "plastic")
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_carry_and_parameters_survive_a_checkpoint(make, common, tmp_path, dtype):
    cell, other = make(jnp.float32, dtype=dtype), make(jnp.float32, seed=1, dtype=dtype)
    x = cell_inputs(cell)
    carry = flagged(cell, x).carry
    number = jnp.int32(3)
    state = TrainState(nnx.state(cell, nnx.Param), carry, jax.random.key(5), number, number, number)
    save_checkpoint(tmp_path, 3, state, {})

    graphdef, params = nnx.split(other)
    like = jax.eval_shape(lambda: state._replace(params=params, opt_state=cell.initialize_carry(x.shape[1:])))
    saved = restore_checkpoint(tmp_path, like).state
    continued = flagged(nnx.merge(graphdef, saved.params), x, saved.opt_state)
    common.equal(continued, flagged(cell, x, carry))
    strange = split_output(flagged(other, x, saved.opt_state).outputs)[0]
    assert np.any(strange != split_output(continued.outputs)[0])


@pytest.mark.parametrize("factory", [gradient_memory, local_memory])
def test_huge_keys_and_values_stay_finite(factory, common):
    """Unlike tanh, a layer norm does not bound keys: here they are several thousand."""
    memory = factory(4, 4, hidden_sizes=(4,))
    cell = MNMCell(D, 5, memory, heads=2, interaction="layer_norm", rngs=nnx.Rngs(0))
    cell.norm.scale[...] *= 5e3
    x = common.inputs(jnp.float32)
    run = flagged(cell, x)
    assert np.abs(run.outputs.trace.write_keys).max() > 5e3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run))


def test_a_carry_is_donated_step_by_step(common):
    cell = common.CELLS["mnm-p"](jnp.float32)
    x = jnp.ones((2, D))
    expected = unroll(cell, None, jnp.stack([x] * 3), form="plain")[0]
    for jit in (jax.jit, nnx.jit):
        step = jit(lambda cell, carry, x: cell(carry, x)[0], donate_argnums=1)
        carry = cell.initialize_carry(x.shape)
        for _ in range(3):
            carry, before = step(cell, carry, x), carry
        assert before.read.is_deleted()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), carry, expected)
