"""Tests that errors about a user's cell name a missing member, and a leaf of the first carry that does not fit."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import LSTMCell, ParamTree, WriteOptions, local_memory, unroll
from mnm_jax.testing import check_cell_forms

T, B, D, K = 4, 2, 3, 2
MEMORY = local_memory(K, K, hidden_sizes=())
MEMBERS = ("memory", "memory_params", "heads", "linear_maps")


class Carry(NamedTuple):
    memory: Any
    total: Any


class WithoutMaps(nnx.RNNCellBase):
    """Writes and reads with projections of its inputs.

    Args:
      renamed: a member of `MemoryCell` that gets another name.
      start: the leaf `total` of its first carry, for a batch size.
      memory: the memory.
    """

    num_feature_axes = 1

    def __init__(self, renamed="", start=lambda size: jnp.zeros(size), memory=MEMORY):
        self.in_features, self.out_features, self.start = D, K, start
        self.linear = nnx.Linear(D, 2 * K, rngs=nnx.Rngs(0))
        params = ParamTree(memory.init(nnx.Rngs(1).params()))
        members = {"memory": memory, "memory_params": params, "heads": 1}
        self.names = {name: f"own_{name}" if name == renamed else name for name in members}
        for name, value in members.items():
            setattr(self, self.names[name], value)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        memory, params = (getattr(self, self.names[name]) for name in ("memory", "memory_params"))
        return Carry(memory.start(params.get_value(), input_shape[0]), self.start(input_shape[0]))

    def __call__(self, carry, inputs):
        memory, params = (getattr(self, self.names[name]) for name in ("memory", "memory_params"))
        key, value = jnp.split(self.linear(inputs)[:, None], 2, -1)
        gates = dict.fromkeys(memory.gates, inputs[:, 0])
        state, info = memory.write(params.get_value(), carry.memory, key, value, inputs[:, 0], **gates)
        read = memory.read(params.get_value(), state, value)
        return Carry(state, carry.total + jnp.ones_like(carry.total)), read[:, 0]


class Own(WithoutMaps):
    """The same with all members of a `MemoryCell`."""

    def linear_maps(self):
        return [self.linear]


X = np.linspace(0, 1, T * B * D, dtype=np.float32).reshape(T, B, D)


def test_the_cell_runs_in_every_form():
    check_cell_forms(Own())


@pytest.mark.parametrize("name", MEMBERS)
def test_a_missing_member_is_named(name):
    cell = WithoutMaps() if name == "linear_maps" else Own(name)
    unroll(cell, None, X)
    message = f"has a memory but lacks {name} of a MemoryCell, so it cannot run in form='reversible': add"
    with pytest.raises(ValueError, match=message):
        unroll(cell, None, X, form="reversible")
    with pytest.raises(AssertionError, match=rf"^check_cell_forms failed.* must be a MemoryCell.*: add \['{name}'\]"):
        check_cell_forms(cell)


def test_cells_without_fast_forms_keep_the_contract():
    check_cell_forms(Own(memory=local_memory(K, K, hidden_sizes=(), options=WriteOptions(forget=True))))
    check_cell_forms(LSTMCell(D, K, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("form", ["plain", "auto", "reversible", "factored"])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_first_carry_without_the_axis_of_the_batch_is_named(form, shape):
    cell = Own(start=lambda size: jnp.zeros(shape))
    message = (
        f"Own.initialize_carry must return .* B = 2, got 'total' of shape {re.escape(str(shape))}: make it .B, ..."
    )
    flags = {"mask": np.ones((T, B), bool)} if form == "plain" else {}
    with pytest.raises(ValueError, match=message):
        unroll(cell, None, X, form=form, **flags)


def test_without_flags_the_form_plain_takes_a_counter_without_that_axis():
    carry, outputs = unroll(Own(start=lambda size: jnp.zeros(())), None, X, form="plain")
    assert carry.total == T
    np.testing.assert_array_equal(outputs, unroll(Own(), None, X, form="plain")[1])


class AsTuple(Own):
    """Begins with a list and returns a tuple."""

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return list(super().initialize_carry(input_shape))

    def __call__(self, carry, inputs):
        carry, outputs = super().__call__(Carry(*carry), inputs)
        return tuple(carry), outputs


@pytest.mark.parametrize("form", ["plain", "auto", "reversible", "factored"])
def test_a_step_that_returns_another_container_is_named(form):
    message = "a step of AsTuple must return a carry with the structure of initialize_carry: list, got tuple"
    with pytest.raises(TypeError, match=message):
        unroll(AsTuple(), None, X, form=form)


class Counting(Own):
    """Counts its steps, and writes at a rate that depends on the count."""

    def __call__(self, carry, inputs):
        assert carry.total.dtype == jnp.int32
        rate = 1 / (1 + carry.total.astype(inputs.dtype))
        return super().__call__(carry, inputs * rate[:, None])


@pytest.mark.parametrize("form", ["reversible", "factored"])
@pytest.mark.parametrize("every", [None, 2])
def test_a_counter_of_integers_is_a_leaf_of_the_carry_in_every_form(form, every):
    reset, fork = np.zeros((T, B), bool), np.zeros((T, B), bool)
    mask = ~reset
    mask[1, 1], reset[2, 0], fork[1, 0] = False, form == "factored", True
    cell = Counting(start=lambda size: jnp.zeros(size, jnp.int32))

    def run(form, every=None):
        def loss(cell, inputs):
            carry, outputs = unroll(cell, None, inputs, **flags, form=form, checkpoint_every=every)
            return jnp.sum(jnp.sin(outputs)) + jnp.sum(carry.memory.weights[0] ** 2), (carry, outputs)

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(cell, X)

    flags = {"mask": mask, "fork": fork} | ({"reset": reset} if form == "factored" else {})
    expected, found = run("plain"), run(form, every)
    np.testing.assert_array_equal(found[0][1][0].total, [2, 3] if form == "factored" else [3, 3])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
