"""Tests that wrong arguments of `unroll` are refused by an error that names the argument, its value and the remedy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import LSTMCell, MNMCell, NTMCell, WriteOptions, choose_form, gradient_memory, local_memory, unroll

T, B, D = 5, 2, 3
MNM = MNMCell(D, 4, local_memory(4, 2, hidden_sizes=()), rngs=nnx.Rngs(0))
LSTM = LSTMCell(D, 4, rngs=nnx.Rngs(0))
X = np.zeros((T, B, D), np.float32)
NONE = np.ones((T, B), bool)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"form": "fast"}, ValueError, "form must be one of 'auto', 'plain', 'factored', 'reversible', got 'fast'"),
        ({"form": None}, ValueError, "form must be one of .*, got None"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be >= 1, got 0"),
        ({"checkpoint_every": 2.0}, TypeError, "checkpoint_every must be an integer >= 1, got 2.0 of type float"),
        ({"checkpoint_every": True}, TypeError, "checkpoint_every must be an integer >= 1, got True of type bool"),
        ({"time_major": None}, TypeError, "time_major must be True or False, got None"),
        ({"time_major": False}, ValueError, r"mask must have shape \[B, T\] = \[5, 2\], got \(2, 5\)"),
        ({"inputs": X[0]}, ValueError, r"inputs must have shape \[T, B, D\], got \(2, 3\)"),
        ({"inputs": X.tolist()}, TypeError, r"inputs must be an array \[T, B, D\], got .*: use jnp.asarray"),
        ({"inputs": X[..., :2]}, ValueError, r"inputs must have shape \[T, B, D\] = \[T, B, 3\], got \(5, 2, 2\)"),
        ({"inputs": X * 1j}, TypeError, "inputs must be an array of floating-point numbers, got dtype complex64"),
        ({"cell": LSTMCell}, TypeError, "cell must be an nnx.RNNCellBase, got <class .*: pass an instance"),
        ({"cell": None}, TypeError, "cell must be an nnx.RNNCellBase, got None"),
    ],
    ids=str,
)
def test_wrong_values(options, error, message):
    mask = NONE.T if "time_major" in options else None
    given = {"cell": LSTM, "carry": None, "inputs": X, "mask": mask}
    with pytest.raises(error, match=message):
        unroll(**(given | options))


@pytest.mark.parametrize("name", ["mask", "reset", "fork", "reset_controller", "fork_memory"])
@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (NONE.T, ValueError, r"must have shape \[T, B\] = \[5, 2\], got \(2, 5\)"),
        (NONE[:, :1], ValueError, r"must have shape \[T, B\] = \[5, 2\], got \(5, 1\)"),
        (NONE[:, 0], ValueError, r"must have shape \[T, B\] = \[5, 2\], got \(5,\)"),
        (NONE.astype(np.float32), TypeError, "must be an array of bools, got dtype float32: use astype"),
        (NONE.astype(np.int32), TypeError, "must be an array of bools, got dtype int32: use astype"),
        (NONE.tolist(), TypeError, r"must be an array \[T, B\], got .*: use jnp.asarray"),
        (True, TypeError, r"must be an array \[T, B\], got True"),
    ],
)
def test_wrong_flags(name, flags, error, message):
    with pytest.raises(error, match=f"{name} {message}"):
        unroll(MNM, None, X, **{name: flags})


@pytest.mark.parametrize("form", ["plain", "reversible", "factored"])
def test_a_carry_of_another_batch_size_is_refused(form):
    for batch_size in (1, 3):
        with pytest.raises(
            ValueError, match=r"carry must have the batch size of the inputs, B = 2, got its leaf .* of"
        ):
            unroll(MNM, MNM.initialize_carry((batch_size, D)), X, form=form)


def test_a_carry_that_is_not_the_cells_is_refused():
    with pytest.raises(TypeError, match="carry must consist of arrays .*, got 1 as its leaf"):
        unroll(LSTM, (1, 2), X)
    with pytest.raises(TypeError, match=r"carry must have the leaves .*memory.weights\[0\].* as of MNMCell, got \["):
        unroll(MNM, MNM.initialize_carry((B, D)).controller, X)


@pytest.mark.parametrize(
    "form, message",
    [("plain", "carry must be MNMCarry, got one of type dict"), ("reversible", "have the structure of MNMCell.init")],
)
def test_a_carry_with_the_leaves_of_the_cell_in_other_nodes_is_refused(form, message):
    with pytest.raises(TypeError, match=r"carry must be a pair \(c, h\), got one of type list: use initialize_carry"):
        unroll(LSTM, list(LSTM.initialize_carry((B, D))), X)
    with pytest.raises(TypeError, match=message):
        unroll(MNM, MNM.initialize_carry((B, D))._asdict(), X, form=form)


@pytest.mark.parametrize("form", ["auto", "plain", "reversible", "factored"])
@pytest.mark.parametrize("resets", [False, True])
def test_the_memory_of_another_cell_is_refused_in_every_form(form, resets):
    """A fast form would otherwise run the other network, whose widths its steps do not read."""
    cells = [MNMCell(D, 4, gradient_memory(4, 2, hidden_sizes=(width,)), rngs=nnx.Rngs(0)) for width in (3, 5)]
    message = r"types of MNMCell.init.*, but 'memory.weights\[0\]' is float32\[2, 4, 5\] instead of .*3\]; use a carry"
    with pytest.raises(TypeError, match=message):
        unroll(cells[0], cells[1].initialize_carry((B, D)), X, form=form, reset=NONE if resets else None)


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


class Accumulator(nnx.RNNCellBase):
    """A cell that does not cast its inputs."""

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return {"sum": jnp.zeros(input_shape, jnp.bfloat16)}

    def __call__(self, carry, inputs):
        new = {"sum": carry["sum"].astype(inputs.dtype) + inputs}
        return new, new["sum"]


@pytest.mark.parametrize("form", ["plain", "reversible", "factored"])
def test_a_carry_in_another_dtype_is_named(form):
    carry = cast(MNM.initialize_carry((B, D)), jnp.bfloat16)
    message = (
        r"types of MNMCell.initialize_carry, but '.*' is bfloat16\[2, .*\] instead of float32\[2, .*\]; cast inputs"
    )
    with pytest.raises(TypeError, match=message):
        unroll(MNM, carry, X, form=form)


def test_inputs_that_change_the_dtype_of_the_carry_are_named():
    message = r"a step of Accumulator with inputs in float32 changes the carry: 'sum' is float32\[2, 3\] instead of bf"
    with pytest.raises(TypeError, match=message):
        unroll(Accumulator(), None, X)
    carry, _ = unroll(Accumulator(), None, jnp.asarray(X, jnp.bfloat16))
    assert carry["sum"].dtype == jnp.bfloat16


class Bare(nnx.RNNCellBase):
    """Has one array as its carry; a step returns what `results` makes of carry and outputs."""

    def __init__(self, results, dtype=jnp.float32):
        self.results, self.dtype = results, dtype

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros(input_shape, self.dtype)

    def __call__(self, carry, inputs):
        carry = carry.astype(inputs.dtype) + inputs
        return self.results(carry)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (lambda c: c, r"step of Bare must return \(carry, outputs\), got an array"),
        (lambda c: (c, c, c), r"step of Bare must return \(carry, outputs\), got 3 results"),
        (lambda c: ((c, c), c), "Bare must return a carry with the structure of initialize_carry: an array, got tuple"),
        (
            lambda c: (c[:, :2], c),
            r"it is float32\[2, 2\] instead of float32\[2, 3\]; return \(carry, outputs\), the carry in its first",
        ),
    ],
)
def test_what_a_step_returns_is_named(results, message):
    with pytest.raises(TypeError, match=message):
        unroll(Bare(results), None, X)


def test_the_carry_of_one_array_has_no_name():
    with pytest.raises(TypeError, match=r"changes the carry: it is float32\[2, 3\] instead of bfloat16.*; cast inputs"):
        unroll(Bare(lambda c: (c, c), jnp.bfloat16), None, X)
    with pytest.raises(ValueError, match=r"B = 2, got an array of shape \(3,\): use cell.initialize_carry"):
        unroll(Bare(lambda c: (c, c)), jnp.zeros(D), X)
    with pytest.raises(TypeError, match=r"consist of arrays \[B, ...\], got 1\.$"):
        unroll(Bare(lambda c: (c, c)), 1, X)


@pytest.mark.parametrize(
    ("results", "name", "shape"),
    [
        (lambda c: (c, jnp.sum(c)), "an array", ()),
        (lambda c: (c, {"mean": jnp.mean(c, 0), "read": c}), "'mean'", (D,)),
        (lambda c: (c, {"loss": jnp.mean(c, keepdims=True)}), "'loss'", (1, 1)),
    ],
)
def test_outputs_that_mix_examples_are_refused_with_a_mask(results, name, shape):
    """The mask would otherwise be broadcast to them."""
    cell, message = Bare(results), re.escape(f"B = 2, got {name} of shape {shape}: return it as [B, ...]")
    with pytest.raises(ValueError, match=f"the outputs must have the batch size of the inputs, {message}"):
        unroll(cell, None, X, mask=NONE)
    unroll(cell, None, X, fork=~NONE)


def test_a_step_that_mixes_the_carries_of_examples_is_refused_with_a_mask():
    cell = Bare(lambda c: (jnp.mean(c, 0, keepdims=True), c))
    with pytest.raises(TypeError, match=r"it is float32\[1, 3\] instead of float32\[2, 3\]; return \(carry, outputs\)"):
        unroll(cell, None, X, mask=NONE)


def test_outputs_may_be_none():
    _, outputs = unroll(Bare(lambda c: (c, {"read": c, "loss": None})), None, X, mask=NONE)
    assert outputs["loss"] is None and outputs["read"].shape == X.shape


def test_errors_of_a_cell_itself_are_not_replaced():
    class Failing(Accumulator):
        def __call__(self, carry, inputs):
            raise TypeError("the cell's own error")

    with pytest.raises(TypeError, match="the cell's own error"):
        unroll(Failing(), None, X)


def test_a_form_that_the_cell_lacks_is_refused():
    with pytest.raises(ValueError, match="no neural memory, so it cannot run in form='factored': use form='plain'"):
        unroll(LSTM, None, X, form="factored")
    gated = MNMCell(D, 4, local_memory(4, 2, hidden_sizes=(), options=WriteOptions(forget=True)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="MNMCell has a memory that is not written only in pairs"):
        unroll(gated, None, X, form="reversible")


@pytest.mark.parametrize("name", ["reset_controller", "fork_memory"])
def test_flags_about_a_memory_need_one(name):
    for cell in (LSTM, NTMCell(D, 4, slots=3, memory_features=2, rngs=nnx.Rngs(0))):
        message = f"{name} needs a cell with a neural memory in its carry, and {type(cell).__name__} has none"
        with pytest.raises(ValueError, match=message):
            unroll(cell, None, X, **{name: NONE})


def test_choose_form_checks_its_arguments():
    with pytest.raises(ValueError, match="form must be one of 'auto', 'plain', 'factored', 'reversible', got 'slow'"):
        choose_form(LSTM, 3, form="slow")
    with pytest.raises(ValueError, match="steps must be >= 0, got -1"):
        choose_form(MNM, -1)
    with pytest.raises(TypeError, match="reset must be True or False, got None"):
        choose_form(MNM, 3, reset=None)


@pytest.mark.parametrize("form", ["plain", "reversible", "factored"])
@pytest.mark.parametrize("dtype", [bool, jnp.int32])
def test_inputs_of_other_dtypes_are_converted(form, dtype):
    """Padding leaves the carry bit-equal, whatever its inputs, and adds nothing to the gradient."""
    inputs = jax.random.bernoulli(jax.random.key(0), 0.5, (T, B, D)).astype(dtype)
    mask = jnp.ones((T, B), bool).at[2:, 0].set(False)

    def run(inputs, mask):
        def loss(cell):
            carry, outputs = unroll(cell, None, inputs, mask=mask, form=form)
            return jnp.sum(outputs.features**2), (carry, outputs.features)

        return jax.jit(jax.grad(loss, has_aux=True))(MNM)

    expected, found = run(inputs.astype(jnp.float32), mask), run(inputs, mask)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    jax.tree.map(np.testing.assert_array_equal, run(inputs.at[2:, 0].set(jnp.ones((), dtype)), mask), found)
    carry, features = found[1]
    short, _ = run(inputs[:2], mask[:2])[1]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), carry, short)
    assert np.all(features[2:, 0] == 0) and np.any(features[2:, 1] != 0)


def test_a_cell_of_ones_own_gets_its_inputs_as_they_are():
    """Such as tokens, which it embeds."""

    class Embedding(Accumulator):
        in_features = 50  # the number of tokens, not D

        def __call__(self, carry, inputs):
            assert inputs.dtype == jnp.int32
            return super().__call__(carry, inputs.astype(jnp.bfloat16))

    carry, _ = unroll(Embedding(), None, jnp.ones((T, B, D), jnp.int32))
    np.testing.assert_array_equal(carry["sum"].astype(jnp.float32), np.full((B, D), T))
