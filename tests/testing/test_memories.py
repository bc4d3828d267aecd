"""Tests the contracts of a memory: this library's memories keep them, and a memory that breaks one fails its check."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from mnm_jax import (
    Memory,
    MemoryParams,
    MNMCell,
    WriteInfo,
    WriteOptions,
    custom_memory,
    gradient_memory,
    local_memory,
    matrix_memory,
    rule_memory,
    testing,
)
from mnm_jax.memory import Pair, _pair_memory
from mnm_jax.memory._storage.factored import FactoredState

OPTIONS = WriteOptions(key_norm="l2", max_norm=1.0, inner_steps=2, forget=True, momentum=True)


def init(key):
    return jax.random.normal(key, (4, 3)) / 2


def apply(weights, key):
    return jnp.tanh(key.astype(weights.dtype) @ weights).astype(key.dtype)


MEMORIES = {
    "hebbian": lambda param_dtype: matrix_memory(4, 3, "hebbian", param_dtype=param_dtype),
    "delta": lambda param_dtype: matrix_memory(4, 3, options=WriteOptions(key_norm="l2"), param_dtype=param_dtype),
    "gradient": lambda param_dtype: gradient_memory(4, 3, hidden_sizes=(5,), param_dtype=param_dtype),
    "local": lambda param_dtype: local_memory(4, 3, hidden_sizes=(5,), param_dtype=param_dtype),
    "options": lambda param_dtype: gradient_memory(4, 3, hidden_sizes=(5,), options=OPTIONS, param_dtype=param_dtype),
}


@pytest.mark.slow  # tests/memory/test_contract.py calls the contracts for some memories
@pytest.mark.parametrize("name", MEMORIES)
def test_the_librarys_memories_keep_the_contracts(name):
    testing.check_memory(MEMORIES[name])


def test_a_memory_with_an_optimizer_keeps_those_that_do_not_pickle_it(x64):
    options = WriteOptions(optimizer=optax.adam(0.1, eps_root=1e-8))
    memory = gradient_memory(4, 3, hidden_sizes=(), options=options, param_dtype=jnp.float64)
    for check in (testing.check_memory_zero_rate, testing.check_memory_reads, testing.check_memory_isolation):
        check(memory)


def test_a_custom_memory_keeps_them_too(x64):
    memory = custom_memory(4, 3, init=lambda key: init(key).astype(jnp.float64), apply=apply)
    for check in (testing.check_memory_reads, testing.check_memory_isolation, testing.check_memory_head_order):
        check(memory)


@dataclasses.dataclass(frozen=True)
class Average(Memory):
    """A memory that answers any key with a running average of the values; `fault` breaks one contract."""

    fault: str = ""
    param_dtype: str = "float32"
    key_size = 4
    value_size = 3
    gates = ()
    pairs_only = False

    def init(self, key):
        return MemoryParams(jax.random.normal(key, (3,), self.param_dtype), None)

    def start(self, params, batch_size):
        return jnp.broadcast_to(params.weights[None], (batch_size, 3))

    def read(self, params, state, keys):
        return jnp.broadcast_to(state[:, None].astype(keys.dtype), (*keys.shape[:2], 3))

    def write_read(self, params, state, keys, values, rate, read_keys):
        wanted = values[:, 0] if self.fault == "head order" else jnp.mean(values, 1)
        if self.fault == "extremes":
            wanted = wanted / jnp.sqrt(jnp.sum(keys * keys, (1, 2)))[:, None]
        if self.fault == "derivatives":
            wanted = jax.lax.stop_gradient(wanted)
        if self.fault == "isolation":
            wanted = wanted + jnp.mean(wanted, 0, keepdims=True)
        step = rate + 1 if self.fault == "zero rate" else rate
        new = state + step[:, None].astype(state.dtype) * (wanted.astype(state.dtype) - state)
        if self.fault == "first state":
            new = jnp.where(rate[:, None] > 0, new, params.weights[None])
        loss = lambda state: jnp.mean((self.read(params, state, keys) - values) ** 2, (1, 2))  # noqa: E731
        change = jnp.sum(jnp.abs(new - state), 1)
        before = loss(new) if self.fault == "reads" else loss(state)
        info, read = WriteInfo(before, loss(new), change), self.read(params, new, read_keys)
        return new.astype(jnp.float32) if self.fault == "dtypes" else new, info, read


class MarkedState(NamedTuple):
    """A state with the property that marks it as a memory's."""

    value: Any

    @property
    def of_memory(self):
        return True


class Marked(Average):
    """The same memory with a marked state, whose dtype is that of the parameters."""

    def start(self, params, batch_size):
        return MarkedState(super().start(params, batch_size))

    def read(self, params, state, keys):
        return super().read(params, getattr(state, "value", state), keys)

    def write_read(self, params, state, keys, values, rate, read_keys):
        new, info, read = super().write_read(params, state.value, keys, values, rate, read_keys)
        return MarkedState(new), info, read


def test_a_marked_state_of_ones_own_keeps_the_contracts_on_dtypes():
    name = lambda dtype: jnp.dtype(dtype).name  # noqa: E731
    testing.check_memory_dtypes(lambda param_dtype: Marked(param_dtype=name(param_dtype)))

    def make(dtype, param_dtype):
        memory = Marked(param_dtype=name(param_dtype))
        return MNMCell(3, 4, memory, heads=2, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))

    testing.check_cell_dtypes(make)


def decaying(network, weights, keys, values, decay):
    answers = weights.product(0, keys)
    return (Pair(keys, (1 + decay) * answers - values),), answers


class Identity(Average):
    """A memory without equality by settings."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


ON_MEMORIES = {
    "reads": testing.check_memory_reads,
    "zero rate": testing.check_memory_zero_rate,
    "head order": testing.check_memory_head_order,
    "isolation": testing.check_memory_isolation,
    "extremes": testing.check_memory_extremes,
    "derivatives": testing.check_memory_derivatives,
}


@pytest.mark.parametrize("fault", [*ON_MEMORIES, "first state"])
def test_a_broken_memory_is_caught(fault, x64):
    check = ON_MEMORIES.get(fault, testing.check_memory_zero_rate)
    check(Average(param_dtype="float64"))
    with pytest.raises(AssertionError, match=f"^{check.__name__} failed. Checks "):
        check(Average(fault, param_dtype="float64"))


def test_a_wrong_size_of_a_write_is_caught(monkeypatch, x64):
    memory = local_memory(3, 4, hidden_sizes=(), param_dtype=jnp.float64)
    testing.check_memory_reads(memory)
    monkeypatch.setattr(_pair_memory, "norm_of_pairs", lambda pairs: jnp.zeros(pairs[0].inputs.shape[0], jnp.float64))
    with pytest.raises(AssertionError, match="^check_memory_reads failed"):
        testing.check_memory_reads(local_memory(3, 5, hidden_sizes=(), param_dtype=jnp.float64))


def test_dtypes_and_equality_are_caught():
    make = lambda param_dtype: Average(param_dtype=jnp.dtype(param_dtype).name)  # noqa: E731
    testing.check_memory_dtypes(make)
    with pytest.raises(AssertionError, match="^check_memory_dtypes failed. .* A write changes the state"):
        testing.check_memory_dtypes(lambda param_dtype: Average("dtypes", jnp.dtype(param_dtype).name))
    testing.check_memory_equality(make)
    with pytest.raises(AssertionError, match="^check_memory_equality failed.* must be equal"):
        testing.check_memory_equality(lambda param_dtype: Identity())
    partial = lambda param_dtype: rule_memory(4, 4, functools.partial(decaying, decay=0.1))  # noqa: E731
    with pytest.raises(AssertionError, match="frozen dataclass with __call__, since two functools.partial are never"):
        testing.check_memory_equality(partial)


@pytest.mark.slow  # test_cells.py has the same fault, with the contract that this one calls
def test_a_broken_execution_form_is_caught(monkeypatch, x64):
    """The products of the factored storage are too large by a thousandth."""
    memory = local_memory(3, 5, hidden_sizes=(), param_dtype=jnp.float64)  # sizes that no other test has compiled
    product = FactoredState.product
    monkeypatch.setattr(FactoredState, "product", lambda self, layer, x: 1.001 * product(self, layer, x))
    with pytest.raises(AssertionError, match="^check_memory_forms failed"):
        testing.check_memory_forms(memory)
