"""What every cell keeps to over time: one step after the other, masked, reset, and however extreme its numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mnm_jax
from mnm_jax import MemoryCell, MNMCell, gradient_memory, local_memory, unroll
from mnm_jax.cells import split_output

T, B, D = 6, 3, 6


def test_every_exported_cell_is_here(common):
    exported = {getattr(mnm_jax, name) for name in mnm_jax.__all__ if name.endswith("Cell")}
    assert exported - {MemoryCell} == {type(make(jnp.float32)) for make in common.CELLS.values()}


DTYPES = [(jnp.float32, None), (jnp.bfloat16, None), (jnp.float32, jnp.bfloat16)]


@pytest.mark.parametrize(("param_dtype", "dtype"), DTYPES)
def test_the_carry_keeps_its_shapes_and_dtypes(make, param_dtype, dtype):
    """Parameters and a memory's weights have `param_dtype`; the rest of the carry and all outputs have `dtype`."""
    cell = make(param_dtype, dtype=dtype)
    dtype = dtype or param_dtype
    kinds = partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert (cell.dtype, cell.param_dtype) == (dtype, param_dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(cell, nnx.Param))} == {jnp.dtype(param_dtype)}
    carry = cell.initialize_carry((B, D))
    weights = isinstance(cell, MemoryCell)
    others = carry._replace(memory=None) if weights else carry
    assert {leaf.dtype for leaf in jax.tree.leaves(others)} - {jnp.dtype(jnp.int32)} == {jnp.dtype(dtype)}
    if weights:
        assert {leaf.dtype for leaf in jax.tree.leaves(carry.memory)} == {jnp.dtype(param_dtype)}
    for given in (dtype, jnp.float32, jnp.int32):  # inputs are cast
        x = jnp.zeros((B, D), given)
        new, outputs = jax.eval_shape(cell, carry, x)
        assert kinds(new) == kinds(carry)
        assert split_output(outputs)[0].shape == (B, cell.out_features)
        floats = [leaf.dtype for leaf in jax.tree.leaves(outputs._replace(write=None) if weights else outputs)]
        assert set(floats) == {jnp.dtype(dtype)}
    x = jnp.zeros((B, D), dtype)
    either = jax.eval_shape(lambda go: jax.lax.cond(go, lambda: cell(carry, x)[0], lambda: carry), True)
    assert kinds(either) == kinds(carry)
    many, _ = jax.eval_shape(jax.vmap(cell, (None, 0)), carry, jnp.zeros((2, B, D), dtype))
    assert kinds(many) == jax.tree.map(lambda x: ((2, *x.shape), x.dtype), carry)


def test_unroll_is_the_loop_and_may_be_cut_and_checkpointed(make, common, x64):
    cell, x = make(jnp.float64), common.inputs(shape=(4, B, D))

    step = jax.jit(lambda cell, carry, now: cell(carry, now))  # four of them in one program compile for long

    def loop(cell, carry, x):
        ys = []
        for now in x:
            carry, y = step(cell, carry, now)
            ys.append(y)
        return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *ys)

    def cut(cell, carry, x):
        carry, first = unroll(cell, carry, x[:1])
        carry, second = unroll(cell, carry, x[1:], checkpoint_every=2)  # one chunk and what is left
        return carry, jax.tree.map(lambda *ys: jnp.concatenate(ys), first, second)

    def run(form, compiled=True):
        def value(cell, x):
            carry, outputs = form(cell, cell.initialize_carry((B, D)), x)
            return jnp.sum(jnp.sin(split_output(outputs)[0])), (carry, outputs)

        function = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)
        (_, outputs), gradient = (jax.jit(function) if compiled else function)(cell, x)
        return outputs, jax.tree.leaves(gradient)

    expected = run(unroll)
    common.close(run(loop, compiled=False), expected)
    common.close(run(cut), expected)


def test_padding_has_no_influence_whatever_it_holds(make, common, x64):
    cell, x = make(jnp.float64), common.inputs()
    mask = np.ones((T, B), bool)
    mask[2] = False
    kept = np.array([0, 1, 3, 4, 5])
    padded = jnp.where(mask[..., None], x, jnp.nan)
    run = jax.jit(lambda x, mask: unroll(cell, cell.initialize_carry((B, D)), x, mask=mask))
    carry, outputs = run(padded, mask)
    expected_carry, expected = run(x[kept], mask[kept])
    common.close(carry, expected_carry)
    common.close(split_output(outputs)[0][kept], split_output(expected)[0])
    gradient = jax.grad(lambda x: jnp.sum(common.features(cell, x, mask=mask) ** 2))(padded)
    assert np.all(np.asarray(gradient[2]) == 0) and np.isfinite(gradient).all() and np.any(gradient[1] != 0)
    nothing, _ = run(padded, np.zeros_like(mask))
    common.equal(nothing, cell.initialize_carry((B, D)))
    once = mask & (np.arange(T) < 2)[:, None]
    common.equal(run(padded, once)[0], run(x, once)[0])


def test_packed_episodes_equal_separate_runs(make, common, x64):
    cell, x = make(jnp.float64), common.inputs()
    reset = (np.arange(T) == 4)[:, None] & np.array([[True, False, True]])
    packed = common.features(cell, x, reset=reset)
    whole, apart = common.features(cell, x), common.features(cell, x[4:])
    common.close(packed[:, 1], whole[:, 1])
    common.close(packed[4:, ::2], apart[:, ::2])
    assert np.all(np.any(packed[4:, ::2] != whole[4:, ::2], axis=-1))


def test_causality_and_isolation_of_examples(make, common, x64):
    cell, x = make(jnp.float64), common.inputs()
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(common.features(cell, x)[3, 1]))(x))
    assert np.all(gradient[4:] == 0) and np.all(gradient[:, ::2] == 0)
    assert all(np.any(gradient[t, 1] != 0) for t in range(4))
    other = common.features(cell, x.at[:, 1].set(-7.0))
    np.testing.assert_array_equal(other[:, ::2], common.features(cell, x)[:, ::2])


def assert_finite(value_and_gradient):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(value_and_gradient))


@jax.jit
def value_and_gradient(cell, x):
    """Of everything that is real-valued: features, meta loss, what a write did, the last carry."""

    def value(cell, x):
        carry, outputs = unroll(cell, cell.initialize_carry(x.shape[1:]), x)
        floats = [y for y in jax.tree.leaves((carry, outputs)) if jnp.issubdtype(y.dtype, jnp.floating)]
        return sum(jnp.sum(y) for y in floats)

    return jax.value_and_grad(value, argnums=(0, 1))(cell, x)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_inputs_stay_finite(make, common, scale):
    assert_finite(value_and_gradient(make(jnp.float32), scale * common.inputs(jnp.float32)))


def test_saturated_gates_stay_finite(make, common):
    saturated = jax.tree.map(lambda p: 1e3 * p, make(jnp.float32))
    assert_finite(value_and_gradient(saturated, common.inputs(jnp.float32)))


@pytest.mark.parametrize("factory", [gradient_memory, local_memory])
def test_huge_keys_and_values_stay_finite(factory, common):
    """A layer norm does not bound keys, as tanh does: here they are some thousands."""
    memory = factory(4, 4, hidden_sizes=(4,))
    cell = MNMCell(D, 5, memory, heads=2, interaction="layer_norm", rngs=nnx.Rngs(0))
    cell.norm.scale[...] *= 5e3
    x = common.inputs(jnp.float32)
    _, outputs = unroll(cell, cell.initialize_carry((B, D)), x)
    assert np.abs(outputs.trace.write_keys).max() > 5e3
    assert_finite(value_and_gradient(cell, x))


def test_works_inside_flax_rnn(make, common, x64):
    cell, x = make(jnp.float64), common.inputs()
    outputs = nnx.RNN(cell, time_major=True, rngs=nnx.Rngs(0))(x)
    common.close(split_output(outputs)[0], common.features(cell, x))


def test_bfloat16_computation_keeps_float32_parameters_and_approximates_their_numbers(make, common):
    """Gradients of float32 parameters are float32; numbers agree within a few roundings of bfloat16."""
    half, whole = make(jnp.float32, dtype=jnp.bfloat16), make(jnp.float32)
    x = common.inputs(jnp.float32)

    def run(cell):
        loss = lambda cell: jnp.mean(common.features(cell, x).astype(jnp.float32) ** 2)  # noqa: E731
        return common.features(cell, x), jax.grad(loss)(cell)

    (found, of_half), (expected, of_whole) = run(half), run(whole)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.05 * np.abs(expected).max())
    assert {leaf.dtype for leaf in jax.tree.leaves(of_half)} == {jnp.dtype(jnp.float32)}
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(of_whole))
    for a, b in zip(jax.tree.leaves(of_half), jax.tree.leaves(of_whole), strict=True):
        np.testing.assert_allclose(a, b, atol=0.1 * largest)
