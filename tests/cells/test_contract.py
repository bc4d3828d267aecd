"""What every cell keeps to. A new cell is one line in CELLS."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mnm_jax
from mnm_jax import LSTMCell, MNMCell, SALUCell, gradient_memory, local_memory, unroll
from mnm_jax.cells import split_output

T, B, D = 6, 3, 3


def mnm(factory, dtype, **options):
    return MNMCell(D, 5, factory(4, 4, hidden_sizes=(4,), dtype=dtype), dtype=dtype, rngs=nnx.Rngs(0), **options)


CELLS = {
    "mnm-p": partial(mnm, local_memory, heads=2),
    "mnm-g": partial(mnm, gradient_memory, heads=2),
    "mnm-g-total": partial(mnm, gradient_memory, total_derivative=True),
    "mnm-p-window": partial(mnm, local_memory, meta_window=3),
    "lstm": lambda dtype: LSTMCell(D, 5, param_dtype=dtype, rngs=nnx.Rngs(0)),
    "salu": lambda dtype: SALUCell(D, 5, key_size=4, value_size=4, slots=4, dtype=dtype, rngs=nnx.Rngs(0)),
}
every_cell = pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)


def inputs(seed=0, steps=T):
    return jax.random.normal(jax.random.key(seed), (steps, B, D), jnp.float64)


def features(cell, x, **options):
    return split_output(unroll(cell, cell.initialize_carry(x.shape[1:]), x, **options)[1])[0]


def assert_trees(compare, a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(compare, a, b)


close = partial(assert_trees, partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11))
equal = partial(assert_trees, np.testing.assert_array_equal)


def test_every_exported_cell_is_here(x64):
    exported = {getattr(mnm_jax, name) for name in mnm_jax.__all__ if name.endswith("Cell")}
    assert exported == {type(make(jnp.float64)) for make in CELLS.values()}


@every_cell
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_carry_keeps_its_shapes_and_dtypes(make, dtype):
    cell = make(dtype)
    carry = cell.initialize_carry((B, D))
    new, _ = jax.eval_shape(cell, carry, jnp.zeros((B, D), dtype))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), carry)


@every_cell
def test_unroll_is_the_loop_and_may_be_cut_and_checkpointed(make, x64):
    cell, x = make(jnp.float64), inputs()
    start = cell.initialize_carry((B, D))

    def loop(cell, x):
        carry, ys = start, []
        for step in x:
            carry, y = cell(carry, step)
            ys.append(split_output(y)[0])
        return jnp.stack(ys)

    def cut(cell, x):
        carry, first = unroll(cell, start, x[:2])
        _, second = unroll(cell, carry, x[2:])
        return jnp.concatenate([split_output(first)[0], split_output(second)[0]])

    def run(form):
        value = lambda cell, x: (jnp.sum(jnp.sin(y := form(cell, x))), y)  # noqa: E731
        return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(cell, x)

    (_, expected), gradient = run(features)
    for form in (loop, cut, partial(features, checkpoint_every=4)):
        (_, outputs), found = run(form)
        close(outputs, expected)
        close(jax.tree.leaves(found), jax.tree.leaves(gradient))


@every_cell
def test_padding_has_no_influence_whatever_it_holds(make, x64):
    cell, x = make(jnp.float64), inputs()
    mask = jnp.array([1, 1, 0, 1, 1, 1], bool)[:, None] & jnp.ones((T, B), bool)
    padded = jnp.where(mask[..., None], x, jnp.nan)
    kept = jnp.array([0, 1, 3, 4, 5])
    run = jax.jit(lambda x, mask: unroll(cell, cell.initialize_carry((B, D)), x, mask=mask))
    carry, outputs = run(padded, mask)
    expected_carry, expected = jax.jit(lambda x: unroll(cell, cell.initialize_carry((B, D)), x))(x[kept])
    close(carry, expected_carry)
    close(split_output(outputs)[0][kept], split_output(expected)[0])
    gradient = jax.grad(lambda x: jnp.sum(features(cell, x, mask=mask) ** 2))(padded)
    assert np.all(np.asarray(gradient[2]) == 0) and np.isfinite(gradient).all() and np.any(gradient[1] != 0)
    before, _ = run(padded[:2], mask[:2])
    after, _ = run(padded[:3], mask[:3])
    equal(after, before)


@every_cell
def test_packed_episodes_equal_separate_runs(make, x64):
    cell, x = make(jnp.float64), inputs()
    reset = (jnp.arange(T) == 4)[:, None] & jnp.array([True, False, True])
    packed, whole, apart = features(cell, x, reset=reset), features(cell, x), features(cell, x[4:])
    close(packed[:, 1], whole[:, 1])
    close(packed[4:, ::2], apart[:, ::2])


@every_cell
def test_causality_and_isolation_of_examples(make, x64):
    cell, x = make(jnp.float64), inputs()
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(features(cell, x)[3, 1]))(x))
    assert np.all(gradient[4:] == 0) and np.all(gradient[:, ::2] == 0)
    assert all(np.any(gradient[t, 1] != 0) for t in range(4))


@every_cell
def test_extreme_inputs_stay_finite(make):
    cell = make(jnp.float32)
    for scale in (0.0, 1e4):
        x = scale * inputs().astype(jnp.float32)
        value, gradient = jax.value_and_grad(lambda cell: jnp.sum(features(cell, x) ** 2))(cell)  # noqa: B023
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))


@every_cell
def test_works_inside_flax_rnn(make, x64):
    cell, x = make(jnp.float64), inputs()
    outputs = nnx.RNN(cell, time_major=True, rngs=nnx.Rngs(0))(x)
    close(split_output(outputs)[0], features(cell, x))
