"""Runs the contracts of `mnm_jax.testing` on every setting of a memory that the library offers."""

import itertools

import jax
import jax.numpy as jnp
import optax
import pytest

from mnm_jax import WriteOptions, custom_memory, gradient_memory, local_memory, matrix_memory, rule_memory, testing
from mnm_jax.memory import Pair

K, V = 4, 3
STEPS = ("normalised", "sum", "paper")


def hebb(network, weights, keys, values):
    return (Pair(network.layer_inputs(keys), -values),), weights.product(0, network.layer_inputs(keys))


def setting(factory, *given, **settings):
    """Returns `make_memory` for one setting; `options` is a dict of `WriteOptions`."""
    settings["options"] = WriteOptions(**settings.get("options", {}))
    return lambda param_dtype: factory(K, V, *given, param_dtype=param_dtype, **settings)


def custom(**settings):
    """Returns `make_memory` for a custom memory with a tanh layer."""

    def make(param_dtype):
        def init(key):
            return jax.random.normal(key, (K, V), param_dtype) / 2

        return custom_memory(K, V, init=init, apply=apply, **settings)

    return make


def apply(weights, key):
    return jnp.tanh(key @ weights)


OPTIONS = {
    "l2": {"key_norm": "l2"},
    "layer": {"key_norm": "layer"},
    "max_norm": {"max_norm": 0.5},
    "never_worse": {"never_worse": True},
    "inner": {"inner_steps": 2, "max_norm": 0.5},
    "forget": {"forget": True},
    "momentum": {"momentum": True, "max_norm": 0.5},
    "all": {"key_norm": "l2", "max_norm": 1.0, "inner_steps": 2, "forget": True, "momentum": True},
}
LAYERS = {"bias": {"use_bias": True}, "gelu": {"activation": jax.nn.gelu}, "fixed": {"learn_initial": False}}
RULES = {"gradient": gradient_memory, "local": local_memory}
SETTINGS = {
    f"{rule}-{step}-{len(hidden)}": setting(factory, hidden_sizes=hidden, step_size=step)
    for (rule, factory), step, hidden in itertools.product(RULES.items(), STEPS, ((), (5,)))
}
SETTINGS |= {
    f"{rule}-{name}": setting(factory, hidden_sizes=(5,), options=options)
    for (rule, factory), (name, options) in itertools.product(RULES.items(), OPTIONS.items())
}
SETTINGS |= {
    f"{rule}-{name}": setting(factory, hidden_sizes=(5,), **settings)
    for (rule, factory), (name, settings) in itertools.product(RULES.items(), LAYERS.items())
}
SETTINGS |= {f"hebbian-{name}": setting(matrix_memory, "hebbian", options=given) for name, given in OPTIONS.items()}
SETTINGS |= {
    "local-condition": setting(local_memory, hidden_sizes=(5,), condition_on_key=True),
    "local-through": setting(local_memory, hidden_sizes=(5,), write_through=True),
    "local-through-pre": setting(
        local_memory, hidden_sizes=(5, 4), use_bias=True, write_through=True, pre_activation=True, options=OPTIONS["l2"]
    ),
    "local-through-gates": setting(
        local_memory, hidden_sizes=(5,), write_through=True, options=OPTIONS["all"] | {"max_norm": None}
    ),
    "delta": setting(matrix_memory, options={"key_norm": "l2"}),
    "delta-learned": setting(matrix_memory, learn_initial=True, options={"key_norm": "l2", "forget": True}),
    "rule": setting(rule_memory, hebb, use_bias=True),
    "custom-sum": custom(step_size="sum"),
    "custom-normalised": custom(options=WriteOptions(forget=True)),
}
OPTIMIZER = {"optimizer": optax.adam(0.1, eps_root=1e-8)}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_keeps_the_contracts_that_compile_little(name):
    testing.check_memory_dtypes(SETTINGS[name])
    if not name.startswith("custom"):  # each dtype has its own functions
        testing.check_memory_equality(SETTINGS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_keeps_all_contracts(name):
    if name.startswith("custom"):
        with jax.enable_x64(True):
            memory = SETTINGS[name](jnp.float64)
            for check in (testing.check_memory_reads, testing.check_memory_isolation, testing.check_memory_derivatives):
                check(memory)
    else:
        testing.check_memory(SETTINGS[name])


@pytest.mark.parametrize("rule", RULES)
def test_an_optimizer_keeps_the_contracts_except_pickling(rule, x64):
    """The functions of optax are closures, which cannot be pickled."""
    memory = setting(RULES[rule], hidden_sizes=(), options=OPTIMIZER)(jnp.float64)
    for check in (testing.check_memory_zero_rate, testing.check_memory_reads, testing.check_memory_isolation):
        check(memory)
    with pytest.raises(AssertionError, match="^check_memory_equality failed.*(pickle|local)"):
        testing.check_memory_equality(lambda param_dtype: memory)
