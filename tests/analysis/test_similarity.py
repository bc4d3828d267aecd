"""Tests memory maps against numpy, against values worked by hand, and with vectors of length zero."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import ChainCell, MNMCell, local_memory
from mnm_jax.analysis import _similarity as similarity
from mnm_jax.analysis import memory_maps
from mnm_jax.cells import MemoryTrace

T, H, K, V = 5, 3, 4, 2


@pytest.fixture
def trace():
    rng = np.random.default_rng(0)
    shapes = [(T, H, K), (T, H, V), (T, H, K), (T, H, V), (T,)]
    return MemoryTrace(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return a @ b / np.sqrt((a @ a) * (b @ b))


def test_maps_are_numpy_cosines_averaged_over_heads(trace):
    maps = memory_maps(trace)
    for found, read, written in [
        (maps.keys, trace.read_keys, trace.write_keys),
        (maps.values, trace.read_values, trace.write_values),
    ]:
        assert found.shape == (T, T)
        for t in range(T):
            for s in range(T):
                if s > t:
                    assert np.isnan(found[t, s])
                else:
                    expected = sum(cosine(read[t, h], written[s, h]) for h in range(H)) / H
                    np.testing.assert_allclose(found[t, s], expected, rtol=1e-12)


def test_only_the_direction_counts(trace):
    larger = trace._replace(read_keys=100 * trace.read_keys, write_values=0.01 * trace.write_values)
    for one, other in zip(memory_maps(trace), memory_maps(larger), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5)
    opposite = memory_maps(trace._replace(read_keys=-trace.write_keys))
    np.testing.assert_allclose(np.diagonal(opposite.keys), -1, rtol=1e-12)


def test_a_later_write_changes_no_earlier_row(trace):
    changed = trace._replace(write_keys=np.concatenate([trace.write_keys[:-1], -trace.write_keys[-1:]]))
    one, other = memory_maps(trace).keys, memory_maps(changed).keys
    np.testing.assert_array_equal(other[:-1], one[:-1])
    assert other[-1, -1] == -one[-1, -1] != 0


def test_a_cell_that_reads_first_finds_only_earlier_writes(trace):
    after, before = memory_maps(trace).keys, memory_maps(trace, read_first=True).keys
    np.testing.assert_array_equal(before, np.where(np.eye(T, dtype=bool), np.nan, after))


def test_a_discarded_write_is_found_at_its_own_step_only(trace):
    kept = np.arange(T) != 1
    every, found = memory_maps(trace).values, memory_maps(trace, kept=kept).values
    lost = np.ix_(range(2, T), [1])
    assert np.isnan(found[lost]).all() and not np.isnan(every[lost]).any()
    found[lost] = every[lost]
    np.testing.assert_array_equal(found, every)
    assert np.isnan(memory_maps(trace, read_first=True, kept=kept).values[:, 1]).all()


@pytest.mark.parametrize("make", [ChainCell, partial(MNMCell, read_first=True), MNMCell])
def test_read_first_says_whether_the_write_of_a_step_changes_its_read(make):
    settings = {"entities": 2} if make is ChainCell else {}
    memory = local_memory(6, 3, hidden_sizes=())
    cell = make(8, 5, memory, heads=2, **settings, rngs=nnx.Rngs(0))
    inputs, carry = jax.random.normal(jax.random.key(0), (1, 8)), cell.initialize_carry((1, 8))
    step = jax.jit(lambda cell: cell(carry, inputs)[1].trace)
    first = step(cell)
    cell.rate.bias.set_value(cell.rate.bias.get_value() + 5)
    second = step(cell)
    assert np.array_equal(first.read_values, second.read_values) == cell.read_first


def test_arrays_of_jax_in_bfloat16(trace):
    maps = memory_maps(MemoryTrace(*(jnp.asarray(leaf, jnp.bfloat16) for leaf in trace)))
    np.testing.assert_allclose(maps.keys, memory_maps(trace).keys, atol=0.01)
    assert maps.keys.dtype == np.float64


def test_a_vector_without_direction_is_blank(trace):
    trace.write_values[1, 0] = 0
    blank = np.isnan(memory_maps(trace).values)
    np.testing.assert_array_equal(blank, np.triu(np.ones((T, T), bool), 1) | (np.arange(T) == 1))


def test_wrong_shapes_are_named(trace):
    with pytest.raises(ValueError, match=r"keys must both be \[T, H, F\].* got \(5, 4\) and \(5, 3, 4\)"):
        memory_maps(trace._replace(read_keys=trace.read_keys[:, 0]))
    with pytest.raises(ValueError, match=r"values must both be .* got \(5, 3, 2\) and \(4, 3, 2\)"):
        memory_maps(trace._replace(write_values=trace.write_values[:-1]))
    with pytest.raises(ValueError, match=r"kept must be \[T\] = \[5\].* got \(4,\)"):
        memory_maps(trace, kept=np.ones(4, bool))
    with pytest.raises(TypeError, match="kept must be bools.* got int64"):
        memory_maps(trace, kept=np.ones(5, int))


def test_doctests():
    assert doctest.testmod(similarity, extraglobs={"np": np}) == (0, 3)
