"""Lists the cells that the contract tests run on. A new cell is one line in CELLS."""

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
PAPER = WriteOptions()


def plain(cell, **options):
    def make(param_dtype=jnp.float32, in_features=D, hidden=H, seed=0, dtype=None):
        return cell(in_features, hidden, **options, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(seed))

    return make


def with_memory(cell, factory, *sizes, hidden_sizes=(), options=PAPER, **others):
    def make(param_dtype=jnp.float32, in_features=D, hidden=H, seed=0, dtype=None, **changes):
        memory = factory(*sizes, hidden_sizes=hidden_sizes, options=options, param_dtype=param_dtype)
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        return cell(in_features, hidden, memory, **others | changes, **dtypes, rngs=nnx.Rngs(seed))

    return make


mnm = functools.partial(with_memory, MNMCell, hidden_sizes=(4,))
chain = functools.partial(with_memory, ChainCell, entities=2, heads=2, hops=2)

CELLS = {
    "mnm-p": mnm(local_memory, 4, 4, heads=2),
    "mnm-g": mnm(gradient_memory, 4, 4, heads=2),
    "mnm-p-window": mnm(local_memory, 4, 4, meta_window=3),
    "mnm-p-follow": mnm(local_memory, 4, 4, follow_keys=True),
    "mnm-p-gated": mnm(local_memory, 4, 4, options=WriteOptions(forget=True, momentum=True)),
    "chain-p": chain(local_memory, 12, 3),
    "chain-g": chain(gradient_memory, 12, 3),
    "lstm": plain(LSTMCell),
    "rnn": plain(RNNCell),
    "plastic": plain(PlasticCell),
    "neuromodulated": plain(PlasticCell, modulated=True),
    "salu": plain(SALUCell, slots=4, memory_features=4),
    "ntm": plain(NTMCell, slots=4, memory_features=4),
    "dnc": plain(DNCCell, slots=4, memory_features=4, read_heads=2),
}
# Cached, so that the next test reuses the compiled programs of a cell.
MADE = {name: functools.cache(make) for name, make in CELLS.items()}


def inputs(dtype=jnp.float64, *, seed=0, shape=(T, B, D)):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


@functools.partial(jax.jit, static_argnames="checkpoint_every")
def features(cell, x, **options):
    """Returns features `[T, B, F]` from the start of a sequence, differentiable in the cell and its initial memory."""
    return split_output(unroll(cell, cell.initialize_carry(x.shape[1:]), x, **options)[1])[0]


def compare_trees(compare, a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(compare, a, b)


# Variants of cells in the list by an option or a rule; the cell's own tests and tests/recurrence cover the difference.
VARIANTS = ("mnm-p-window", "mnm-p-follow", "mnm-p-gated", "chain-g")
PARAMS = [pytest.param(name, marks=pytest.mark.slow) if name in VARIANTS else name for name in CELLS]


@pytest.fixture(params=PARAMS)
def make(request):
    """Returns a function `(param_dtype, in_features=D, hidden=H, seed=0, dtype=None) -> cell`, for every cell.

    For a cell with a neural memory it also takes other arguments of the cell, such as `heads`.
    """
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
