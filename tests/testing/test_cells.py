"""Tests the contracts of a cell: a user's plain cell keeps them, and a cell that breaks one fails its check."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mnm_jax import LSTMCell, MNMCell, local_memory, testing, unroll
from mnm_jax.memory._storage.factored import FactoredState
from mnm_jax.testing import _cell_runs

WHOLE = ("check_cell", "check_memory", "check_layer", "check_task")
COUNTER = itertools.count(1)
Hidden = collections.namedtuple("NotInThisModule", ["hidden"])  # pickle does not find it


@jax.custom_jvp
def tanh(x):
    return jnp.tanh(x)


@tanh.defjvp
def wrong_second_derivative(primals, tangents):
    y = jnp.tanh(primals[0])
    return y, (1 - jax.lax.stop_gradient(y) ** 2) * tangents[0]


class Own(nnx.RNNCellBase):
    """A tanh RNN as a user would write it; `fault` breaks one contract."""

    num_feature_axes = 1

    def __init__(self, fault="", hidden=5, dtype=jnp.float32, param_dtype=jnp.float32):
        self.in_features, self.out_features, self.fault, self.dtype = 3, hidden, fault, dtype
        linear = functools.partial(nnx.Linear, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
        self.input, self.recurrent = linear(3, hidden), linear(hidden, hidden)
        self.start = nnx.Param(jnp.zeros((1, hidden), param_dtype))
        self.serial = object() if fault == "compilation" else None

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        start = jnp.zeros((input_shape[0], self.out_features), self.dtype)
        if self.fault == "resets":  # a different initial carry at each call
            start = start + 0.1 * next(COUNTER)
        if self.fault == "pickle":
            return Hidden(start)
        if self.fault == "donation":  # a parameter as the carry
            return self.start[...]
        return start[0] if self.fault == "carry" else start

    def __call__(self, carry, inputs):
        inputs = inputs.astype(self.dtype)
        if self.fault == "isolation":
            inputs = inputs + jnp.mean(inputs, 0, keepdims=True)
        if self.fault == "masking":  # a gradient of 0 / 0 at padding that is replaced by zeros
            inputs = inputs / jnp.linalg.norm(inputs, axis=-1, keepdims=True)
        if self.fault in ("unroll", "flax_rnn", "devices"):  # every trace computes something else
            inputs = inputs * (1 + 0.1 * next(COUNTER))
        before = carry.hidden if self.fault == "pickle" else carry
        before = jnp.broadcast_to(before, (inputs.shape[0], self.out_features))
        if self.fault == "causality":  # ignores the carry
            before = jnp.zeros_like(before)
        total = self.input(inputs) + self.recurrent(before)
        if self.fault == "derivatives":
            total = total + 0.1 * jax.lax.stop_gradient(total)
        if self.fault == "extremes":
            total = total + jnp.exp(total)
        if self.fault == "stream":
            total = total + 2 * before.astype(self.dtype)
        if self.fault == "export":
            total = jax.pure_callback(lambda x: x, total, total)
        hidden = tanh(total) if self.fault == "second derivatives" else jnp.tanh(total)
        if self.fault == "pickle":
            return Hidden(hidden), hidden
        if self.fault == "stream":
            return total, total
        if self.fault == "empty":
            return hidden, hidden.reshape(len(hidden), -1)
        return hidden.astype(jnp.float32) if self.fault == "dtypes" else hidden, hidden


def test_a_users_cell_keeps_all_contracts():
    testing.check_cell(Own)


CHECKS = {
    "carry": testing.check_cell_carry,
    "unroll": testing.check_cell_unroll,
    "masking": testing.check_cell_masking,
    "resets": testing.check_cell_resets,
    "causality": testing.check_cell_causality,
    "isolation": testing.check_cell_isolation,
    "extremes": testing.check_cell_extremes,
    "flax_rnn": testing.check_cell_flax_rnn,
    "devices": testing.check_cell_devices,
    "export": testing.check_cell_export,
    "pickle": testing.check_cell_pickle,
    "donation": testing.check_cell_donation,
    "stream": testing.check_cell_stream,
    "empty": testing.check_cell_empty,
    "derivatives": testing.check_cell_derivatives,
    "second derivatives": testing.check_cell_derivatives,
}


@pytest.mark.parametrize("fault", CHECKS)
def test_a_broken_cell_is_caught(fault, x64):
    check = CHECKS[fault]
    with pytest.raises(AssertionError, match=f"^{check.__name__} failed. Checks "):
        check(Own(fault, dtype=jnp.float64, param_dtype=jnp.float64))


@pytest.mark.parametrize("check", [testing.check_cell_dtypes, testing.check_cell_compilation])
def test_a_cell_made_wrong_is_caught(check):
    fault = check.__name__.removeprefix("check_cell_")
    with pytest.raises(AssertionError, match=f"^{check.__name__} failed"):
        check(functools.partial(Own, fault))


@pytest.mark.parametrize(
    ("check", "flag", "size"), [(testing.check_cell_masking, "mask", 7), (testing.check_cell_resets, "reset", 8)]
)
def test_a_run_that_ignores_its_flags_is_caught(check, flag, size, monkeypatch, x64):
    def careless(*arguments, **options):
        return unroll(*arguments, **{name: given for name, given in options.items() if name != flag})

    monkeypatch.setattr(_cell_runs, "unroll", careless)
    with pytest.raises(AssertionError, match=f"^{check.__name__} failed"):
        check(Own(hidden=size, dtype=jnp.float64, param_dtype=jnp.float64))  # a size that no other test has compiled


def test_a_broken_execution_form_is_caught(monkeypatch, x64):
    memory = local_memory(4, 4, hidden_sizes=(), param_dtype=jnp.float64)
    cell = MNMCell(3, 4, memory, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    product = FactoredState.product
    monkeypatch.setattr(FactoredState, "product", lambda self, layer, x: 1.001 * product(self, layer, x))
    with pytest.raises(AssertionError, match="^check_cell_forms failed"):
        testing.check_cell_forms(cell)


def test_derivatives_in_single_precision_are_refused():
    with pytest.raises(AssertionError, match="Finite differences need a cell in float64, got float32"):
        testing.check_cell_derivatives(LSTMCell(3, 4, rngs=nnx.Rngs(0)))


def test_every_contract_is_listed_and_caught():
    """The docstrings of the three lists name every contract, and so do the tests that inject faults."""
    public = {name for name in testing.__all__ if name not in WHOLE}
    for name in public:
        kind = {"m": testing.check_memory, "l": testing.check_layer}
        prefix = "m" if name.startswith("check_memory") else "l" if name.startswith("check_layer") else ""
        assert f"`{name}`" in kind.get(prefix, testing.check_cell).__doc__, name
    caught = {check.__name__ for check in CHECKS.values()} | {
        "check_cell_dtypes",
        "check_cell_compilation",
        "check_cell_forms",
    }
    assert {name for name in public if not name.startswith(("check_memory", "check_layer"))} == caught
