"""Tests that wrong arguments of cells raise errors that name them, before anything is allocated or computed."""

import random

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
    local_memory,
)

RNGS = nnx.Rngs(0)
PLAIN = {"in_features": 6, "hidden_features": 4, "dtype": None, "param_dtype": jnp.float32, "rngs": RNGS}
TABLE = PLAIN | {"slots": 3, "memory_features": 2}
MNM = {"memory": local_memory(2, 2, hidden_sizes=()), "heads": 1, "out_features": 3, "meta_window": 2}
VALID = {
    LSTMCell: PLAIN,
    RNNCell: PLAIN,
    PlasticCell: PLAIN | {"modulated": True},
    SALUCell: TABLE,
    NTMCell: TABLE | {"read_heads": 1, "write_heads": 1, "max_shift": 1},
    DNCCell: TABLE | {"read_heads": 2},
    MNMCell: PLAIN | MNM | {"interaction": "tanh", "read_first": False, "follow_keys": False, "equal_keys": False},
    ChainCell: PLAIN | {"memory": local_memory(4, 2, hidden_sizes=()), "entities": 2, "heads": 2, "hops": 1},
}
ODD = ["4", (4,), [], {}, object(), 1j, float("nan"), 2.5]
DTYPES = [jnp.int32, jnp.complex64, "float33", "f", 3, bool, jnp.float64]
BAD = {  # wrong values by the type of the right one
    int: [*ODD, 0, -1, 2.0, float("inf"), -float("inf"), True, False, np.float32(3), jnp.ones(2)],
    bool: [*ODD, 0, 1, None, "True", np.ones(2)],
    str: [*ODD, "relu", "", "TANH", 0, True, None, np.ones(2)],
}


def wrong_values(name, right):
    """Returns wrong values of an argument; `dtype` and `out_features` accept None."""
    if name in ("dtype", "param_dtype"):
        return [value for value in [*ODD, *DTYPES] if value != "f"] + [None] * (name == "param_dtype")
    if name in ("memory", "rngs"):
        return [*ODD, None, 0, True, "mnm-p", jax.random.key(0), nnx.Rngs, local_memory, MNMCell]
    return BAD[type(right)] + [None] * (type(right) is int and name != "out_features")


def attempt(cell, arguments):
    """Returns the message of the error, or None."""

    def make():  # keys of one trace cannot be used in another
        return cell(**arguments | ({"rngs": nnx.Rngs(0)} if arguments["rngs"] is RNGS else {}))

    try:
        nnx.eval_shape(make)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("cell", VALID)
def test_every_wrong_value_of_every_argument_is_refused_by_name(cell):
    assert attempt(cell, VALID[cell]) is None
    for name, right in VALID[cell].items():
        for value in wrong_values(name, right):
            message = attempt(cell, VALID[cell] | {name: value})
            assert message is not None and message.startswith(f"{name} must be "), (name, value, message)


def test_several_wrong_values_are_refused_by_the_name_of_one():
    draw = random.Random(0)
    for _ in range(200):
        cell = draw.choice(list(VALID))
        names = draw.sample(list(VALID[cell]), draw.randint(2, 4))
        wrong = {name: draw.choice(wrong_values(name, VALID[cell][name])) for name in names}
        message = attempt(cell, VALID[cell] | wrong)
        assert message is not None and message.partition(" must be ")[0] in names, (cell, wrong, message)


@pytest.fixture(params=["mnm-p", "chain-p", "lstm", "rnn", "plastic", "salu", "ntm", "dnc"])
def cell(request, common):
    return common.CELLS[request.param](jnp.float32)


def test_wrong_inputs_are_refused_by_name(cell):
    carry, d = cell.initialize_carry((2, cell.in_features)), cell.in_features
    for inputs in (None, 3.0, [[1.0] * d] * 2, "x", jnp.ones((2, d), jnp.complex64), jax.random.key(0)):
        with pytest.raises(TypeError, match="^inputs must be an array"):
            cell(carry, inputs)
    for shape in ((d,), (2, d + 1), (1, 2, d), ()):
        with pytest.raises(ValueError, match=r"^inputs must have shape \[B, D\] = \[B, \d\], got \("):
            cell(carry, jnp.ones(shape))


def test_wrong_carries_are_refused_by_name(cell):
    inputs = jnp.ones((2, cell.in_features))
    for carry in (None, (), 3.0, "x", {}, (jnp.ones((2, 5)),), [jnp.ones((2, 5))] * 2):
        with pytest.raises(TypeError, match=r"^carry must be .* use initialize_carry\(\(2, \d\)\)"):
            cell(carry, inputs)
    for batch_size in (1, 3):  # a batch of one was broadcast
        with pytest.raises(ValueError, match=rf"^carry\S* must have the inputs' batch size, 2, got {batch_size}: use"):
            cell(cell.initialize_carry((batch_size, cell.in_features)), inputs)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), cell.initialize_carry(inputs.shape))
    with pytest.raises(TypeError, match=r"^carry\S* must have the cell's dtype float32, got bfloat16: use"):
        cell(half, inputs)


def test_a_memory_of_another_batch_size_is_refused(common):
    cell = common.CELLS["mnm-p"](jnp.float32)
    carry, larger = (cell.initialize_carry((size, cell.in_features)) for size in (2, 3))
    with pytest.raises(ValueError, match=r"^carry.memory must have the inputs' batch size, 2, got 3"):
        cell(carry._replace(memory=larger.memory), jnp.ones((2, cell.in_features)))


def test_wrong_shapes_of_a_carry_are_refused_by_name(cell):
    for shape in (None, 2, "ab", jnp.ones(2)):
        with pytest.raises(TypeError, match=r"^input_shape must be a tuple \(B, D\), got"):
            cell.initialize_carry(shape)
    for shape in ((), (2,), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"^input_shape must be \(B, D\), got"):
            cell.initialize_carry(shape)
    for shape in ((2.0, 3), (None, 3), (True, 3)):
        with pytest.raises(TypeError, match=r"^input_shape\[0\] must be an integer >= 0"):
            cell.initialize_carry(shape)
    with pytest.raises(ValueError, match=r"^input_shape\[0\] must be >= 0"):
        cell.initialize_carry((-1, 3))


def test_double_precision_that_is_not_enabled_names_the_switch():
    with pytest.raises(ValueError, match="^param_dtype must be an enabled dtype, got float64: set JAX_ENABLE_X64=1"):
        LSTMCell(3, 4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
