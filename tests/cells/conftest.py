"""The cells, and what the contract files share. A new cell is one line in CELLS."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import (
    ChainCell,
    DNCCell,
    LSTMCell,
    MNMCell,
    NTMCell,
    PlasticCell,
    RNNCell,
    SALUCell,
    WriteOptions,
    gradient_memory,
    local_memory,
    unroll,
)
from mnm_jax.cells import split_output

T, B, D, H = 6, 3, 6, 5


def mnm(factory, **options):
    def make(dtype, in_features=D, hidden=H, seed=0):
        memory = factory(4, 4, hidden_sizes=(4,), param_dtype=dtype)
        return MNMCell(in_features, hidden, memory, dtype=dtype, rngs=nnx.Rngs(seed), **options)

    return make


def gated(dtype, in_features=D, hidden=H, seed=0):
    memory = local_memory(4, 4, hidden_sizes=(4,), options=WriteOptions(forget=True, momentum=True), param_dtype=dtype)
    return MNMCell(in_features, hidden, memory, dtype=dtype, rngs=nnx.Rngs(seed))


def chain(factory):
    def make(dtype, in_features=D, hidden=H, seed=0):
        memory = factory(12, 3, hidden_sizes=(), param_dtype=dtype)
        return ChainCell(in_features, hidden, memory, entities=2, heads=2, hops=2, dtype=dtype, rngs=nnx.Rngs(seed))

    return make


def lstm(dtype, in_features=D, hidden=H, seed=0):
    return LSTMCell(in_features, hidden, param_dtype=dtype, rngs=nnx.Rngs(seed))


def rnn(dtype, in_features=D, hidden=H, seed=0):
    return RNNCell(in_features, hidden, param_dtype=dtype, rngs=nnx.Rngs(seed))


def plastic(**options):
    def make(dtype, in_features=D, hidden=H, seed=0):
        return PlasticCell(in_features, hidden, **options, dtype=dtype, rngs=nnx.Rngs(seed))

    return make


def salu(dtype, in_features=D, hidden=H, seed=0):
    sizes = {"key_size": 4, "value_size": 4, "slots": 4}
    return SALUCell(in_features, hidden, **sizes, dtype=dtype, rngs=nnx.Rngs(seed))


def slots(cell, **options):
    def make(dtype, in_features=D, hidden=H, seed=0):
        sizes = {"slots": 4, "slot_features": 4}
        return cell(in_features, hidden, **sizes, **options, dtype=dtype, rngs=nnx.Rngs(seed))

    return make


CELLS = {
    "mnm-p": mnm(local_memory, heads=2),
    "mnm-g": mnm(gradient_memory, heads=2),
    "mnm-p-window": mnm(local_memory, meta_window=3),
    "mnm-p-gated": gated,
    "chain-p": chain(local_memory),
    "chain-g": chain(gradient_memory),
    "lstm": lstm,
    "rnn": rnn,
    "plastic": plastic(),
    "neuromodulated": plastic(modulated=True),
    "salu": salu,
    "ntm": slots(NTMCell),
    "dnc": slots(DNCCell, read_heads=2),
}
# Made once: the compiled programs of a cell are then found again by the next test.
MADE = {name: functools.cache(make) for name, make in CELLS.items()}


def inputs(dtype=jnp.float64, *, seed=0, shape=(T, B, D)):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


@functools.partial(jax.jit, static_argnames="checkpoint_every")
def features(cell, x, **options):
    """`[T, B, F]` from the start of a sequence; differentiable in the cell, its initial memory included."""
    return split_output(unroll(cell, cell.initialize_carry(x.shape[1:]), x, **options)[1])[0]


def compare_trees(compare, a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(compare, a, b)


# One more option or rule of a cell that is here anyway; its own tests and those of the forms cover the difference.
VARIANTS = ("mnm-p-window", "mnm-p-gated", "chain-g")
PARAMS = [pytest.param(name, marks=pytest.mark.slow) if name in VARIANTS else name for name in CELLS]


@pytest.fixture(params=PARAMS)
def make(request):
    """`(dtype, in_features=D, hidden=H, seed=0) -> cell`, for every cell."""
    return MADE[request.param]


@pytest.fixture
def common():
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
    return types.SimpleNamespace(
        CELLS=MADE,
        inputs=inputs,
        features=features,
        close=functools.partial(compare_trees, close),
        equal=functools.partial(compare_trees, np.testing.assert_array_equal),
    )
