"""Tests that what the layer cannot do is refused by name."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnm_jax import NeuralMemoryLayer, WriteOptions, custom_memory
from mnm_jax.memory import ErrorRule, Pair, SnapshotRule, rule_memory
from mnm_jax.memory._rules import DeltaRule, GradientRule, HebbianRule
from mnm_jax.testing import check_layer_steps
from tests.layers.common import TWO_LAYERS, D, K, V, make_layer, make_memory


def hebb(network, weights, keys, values):
    return (Pair(keys, -values),), weights.product(0, keys)


class Clipped(ErrorRule):
    """The delta rule with clipped errors, which `step_scale` cannot describe."""

    def layer_targets(self, network, targets, weights, keys, values):
        return (values,)

    def steps(self, inputs, errors):
        return tuple(Pair(x, 0.5 * jnp.clip(error, -9.0, 9.0)) for x, error in zip(inputs, errors, strict=True))

    def step_scale(self, inputs, features):
        return jnp.full_like(inputs[..., :1], 0.5)


class Halved(Clipped):
    def steps(self, inputs, errors):
        return tuple(Pair(x, 0.5 * error) for x, error in zip(inputs, errors, strict=True))


class PerLayer(Clipped):
    """Has its own gain for each layer."""

    def layer_targets(self, network, targets, weights, keys, values):
        return (jnp.tanh(keys), values)

    def steps(self, inputs, errors):
        return tuple(Pair(x, g * error) for x, g, error in zip(inputs, (0.5, 0.1), errors, strict=True))


class TwoPairs(PerLayer):
    """Returns two pairs, also where it gets one layer."""

    write_through = True

    def steps(self, inputs, errors):
        return tuple(Pair(inputs[place], 0.5 * errors[place]) for place in (0, -1))


class OwnRows(SnapshotRule):
    """A delta rule with a learned gain, whose `row_pairs` are given by a function of gain, error and keys."""

    def __init__(self, rows):
        self.rows = rows

    def init(self, network, key, dtype):
        return jnp.ones((), dtype)

    def pairs(self, network, targets, weights, keys, values):
        answers = weights.product(0, keys)
        return (Pair(keys, targets * (answers - values)),), answers

    def row_pairs(self, network, targets, weights, keys, values):
        return self.rows(targets, weights.product(0, keys) - values, keys)


REFUSED = {
    "steps": (lambda: rule_memory(K, V, Clipped()), "`steps` of the rule Clipped must return Pair.x, step_scale"),
    "steps of a layer": (
        lambda: rule_memory(V, V, PerLayer(), hidden_sizes=(V,)),
        "`steps` of the rule PerLayer must .* but differs in layer 1; step_scale cannot depend on .* or the layer",
    ),
    "number of pairs": (
        lambda: rule_memory(V, V, TwoPairs(), hidden_sizes=(V,)),
        "`steps` of the rule TwoPairs must return one Pair per input, got 2 for 1 .with write_through",
    ),
    "rows without the parameters": (
        lambda: rule_memory(K, V, OwnRows(lambda gain, error, keys: (Pair(keys, error),))),
        "`row_pairs` of the rule OwnRows must return for each row what `pairs` .*, but differs in layer 0: correct",
    ),
    "rows that depend on each other": (
        lambda: rule_memory(K, V, OwnRows(lambda gain, error, keys: (Pair(keys, gain * jnp.cumsum(error, 1)),))),
        "`row_pairs` of the rule OwnRows must return for each row what `pairs` returns",
    ),
    "shapes of rows": (
        lambda: rule_memory(K, V, OwnRows(lambda gain, error, keys: (Pair(keys[:, :1], error[:, :1]),))),
        r"a row for each key, of the shapes \[\(\(1, 2, 4\), \(1, 2, 3\)\)\] .*, got \[\(\(1, 1, 4\), \(1, 1, 3\)\)\]",
    ),
    "optimizer": (
        lambda: make_memory("gradient", WriteOptions(optimizer=optax.sgd(0.1)), jnp.float32),
        r"WriteOptions\(optimizer=.*leave optimizer=None, or run this memory step by step in MNMCell",
    ),
    "inner_steps": (
        lambda: make_memory("local", WriteOptions(inner_steps=2), jnp.float32),
        r"WriteOptions\(inner_steps=2\).*leave inner_steps=1",
    ),
    "max_norm": (
        lambda: make_memory("delta", WriteOptions(max_norm=0.5), jnp.float32),
        r"WriteOptions\(max_norm=0.5\).*leave max_norm=None",
    ),
    "custom_memory": (
        lambda: custom_memory(K, V, init=lambda key: jnp.zeros((K, V)), apply=lambda w, k: k @ w),
        "written in pairs, got CustomMemory: use gradient_memory, local_memory or matrix_memory",
    ),
    "rule": (lambda: rule_memory(K, V, hebb), r"got the rule FunctionRule\(.*hebb.*ErrorRule or a SnapshotRule"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_memory_that_chunks_cannot_follow_is_refused_when_the_layer_is_made(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        NeuralMemoryLayer(D, make(), rngs=nnx.Rngs(0))


class HalfPairs:
    def pairs(self, *arguments):
        pairs, answer = super().pairs(*arguments)
        return tuple(Pair(pair.inputs, 0.5 * pair.delta) for pair in pairs), answer


class HalfError(HalfPairs, DeltaRule):
    pass


class HalfGradient(HalfPairs, GradientRule):
    pass


class HalfHebbian(HalfPairs, HebbianRule):
    pass


@pytest.mark.parametrize(
    ("rule", "place"),
    [(HalfError(), "steps"), (HalfGradient("normalised", 0.0), "linearise"), (HalfHebbian(), "row_pairs")],
)
def test_a_rule_with_pairs_that_chunks_do_not_call_is_refused(rule, place):
    with pytest.raises(
        ValueError, match=f"got {type(rule).__name__} with its own `pairs`: .* `{place}`, or .* MNMCell"
    ):
        NeuralMemoryLayer(4, rule_memory(4, 4, rule), rngs=nnx.Rngs(0))


def test_a_rule_of_ones_own_whose_steps_are_its_step_scale_runs_in_chunks():
    layer = NeuralMemoryLayer(D, rule_memory(K, V, Halved()), chunk=3, rngs=nnx.Rngs(0))
    assert layer.exact
    check_layer_steps(layer)


class Spread(Halved):
    """Returns pairs of two rows that have the product of the input and half the error."""

    def steps(self, inputs, errors):
        twice = lambda x: jnp.concatenate([x, x], 1)  # noqa: E731
        return tuple(Pair(twice(x), 0.25 * twice(error)) for x, error in zip(inputs, errors, strict=True))


def test_rules_that_agree_are_accepted_inside_of_jit_too():
    right = OwnRows(lambda gain, error, keys: (Pair(2 * keys, 0.5 * gain * error),))
    for rule in (Spread(), right):
        memory = rule_memory(K, V, rule)
        make = nnx.jit(lambda rngs, memory=memory: NeuralMemoryLayer(D, memory, rngs=rngs))
        assert make(nnx.Rngs(0)).exact == isinstance(rule, Spread)


def test_the_gradient_of_a_value_that_a_rule_closes_over():
    def value(gain):
        rule = OwnRows(lambda one, error, keys: (Pair(keys, gain * error),))
        rule.pairs = lambda *given: (rule.row_pairs(*given), given[2].product(0, given[3]))
        layer = NeuralMemoryLayer(D, rule_memory(K, V, rule), chunk=2, rngs=nnx.Rngs(0))
        return jnp.sum(layer(None, jnp.ones((3, 1, D)))[1])

    slope = (value(0.51) - value(0.49)) / 0.02
    np.testing.assert_allclose(jax.jit(jax.grad(value))(0.5), slope, rtol=1e-2)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"convolution": 0}, ValueError, "convolution must be >= 1, got 0"),
        ({"chunk": 0}, ValueError, "chunk must be >= 1, got 0"),
        ({"chunk": 2.0}, TypeError, "chunk must be an integer >= 1, got 2.0 of type float"),
        ({"heads": -1}, ValueError, "heads must be >= 1, got -1"),
        ({"features": True}, TypeError, "features must be an integer >= 1, got True"),
        ({"stale": 1}, TypeError, "stale must be True or False, got 1"),
        ({"stale": True}, ValueError, "stale=True needs a gradient_memory with hidden_sizes.*leave stale=False"),
        ({"max_rate": 0.0}, ValueError, "max_rate must be > 0, got 0.0"),
        ({"max_rate": 2.5}, ValueError, "max_rate must be <= 2, got 2.5: a write at a higher rate enlarges its own"),
        ({"hard_rate": 2.0}, TypeError, "hard_rate must be True or False, got 2.0"),
        ({"forget_bias": -2.0}, ValueError, r"forget_bias needs a memory with WriteOptions\(forget=True\), got -2"),
        ({"output_norm": 1}, TypeError, "output_norm must be True or False, got 1"),
        ({"output_gate": "silu"}, TypeError, "output_gate must be True or False, got 'silu'"),
        ({"dtype": jnp.int32}, TypeError, "dtype must be a floating-point dtype"),
        ({"dtype": jnp.float64}, ValueError, "dtype must be an enabled dtype, got float64: set JAX_ENABLE_X64=1"),
        ({"param_dtype": "int8"}, TypeError, "param_dtype must be a floating-point dtype"),
        ({"rngs": 0}, TypeError, "rngs must be an nnx.Rngs, got 0"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, error, message):
    given = {"features": D, "memory": make_memory("delta", dtype=jnp.float32), "rngs": nnx.Rngs(0)}
    with pytest.raises(error, match=message):
        NeuralMemoryLayer(**(given | settings))


LAYER = make_layer(make_memory("gradient", dtype=jnp.float32, **TWO_LAYERS), jnp.float32)
TOKENS = jnp.zeros((3, 2, D))


@pytest.mark.parametrize(
    ("given", "settings", "error", "message"),
    [
        (jnp.zeros((2, D)), {}, ValueError, r"inputs must have shape \[T, B, D\].*got \(2, 5\)"),
        (jnp.zeros((2, 3, 4)), {"time_major": False}, ValueError, r"inputs must have shape \[B, T, D\].*\(2, 3, 4\)"),
        (jnp.zeros((3, 2, 4)), {}, ValueError, r"inputs must have shape \[T, B, D\] = \[T, B, 5\], got \(3, 2, 4\)"),
        (TOKENS.astype(complex), {}, TypeError, "inputs must be an array of floating-point .*complex"),
        ([[[1.0] * D]], {}, TypeError, "inputs must be an array"),
        (TOKENS, {"mask": jnp.ones((3, 2))}, TypeError, "mask must be an array of bools, got dtype float32"),
        (TOKENS, {"mask": jnp.ones((2, 3), bool)}, ValueError, r"mask must have shape \[T, B\] = \[3, 2\], got"),
        (
            TOKENS,
            {"reset": jnp.ones((3, 2), bool)},
            ValueError,
            "reset needs a layer .* the rule GradientRule and chunk=64: .* or set chunk=1",
        ),
        (TOKENS, {"return_loss": 1}, TypeError, "return_loss must be True or False, got 1"),
        (None, {}, TypeError, r"inputs must be an array \[T, B, D\], got None: .* sequence, pass \(None, inputs\)"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_wrong_inputs_are_named(given, settings, error, message):
    with pytest.raises(error, match=message):
        LAYER(None, given, **settings)


def test_a_traced_flag_is_named_with_its_remedy():
    """With the remedy, the call runs."""
    layer = make_layer(make_memory("delta", dtype=jnp.float32), jnp.float32, chunk=3)
    with pytest.raises(TypeError, match="return_loss must be True or False, got .*: pass static_argnames='return"):
        nnx.jit(NeuralMemoryLayer.__call__)(layer, None, TOKENS, return_loss=True)
    run = nnx.jit(NeuralMemoryLayer.__call__, static_argnames="return_loss")
    assert run(layer, None, TOKENS, return_loss=True)[1].loss_before.shape == (3, 2, 1)


@pytest.mark.parametrize(("name", "value"), [("chunk", 2), ("memory", None), ("exact", True)])
def test_settings_that_shape_the_chunks_cannot_be_assigned(name, value):
    """Copies of the layer have them, too."""
    layer = make_layer(make_memory("gradient", dtype=jnp.float32, **TWO_LAYERS), jnp.float32, chunk=4)
    for copy in (layer, nnx.merge(*nnx.split(layer)), pickle.loads(pickle.dumps(layer)), nnx.clone(layer)):
        with pytest.raises(AttributeError, match=name):
            setattr(copy, name, value)
        assert (copy.chunk, copy.memory, copy.exact) == (4, layer.memory, False)
        assert nnx.graphdef(copy) == nnx.graphdef(layer)


def test_wrong_tokens_are_named():
    with pytest.raises(ValueError, match=r"inputs must have shape \[B, D\].*got \(2, 4\)"):
        LAYER.step(None, jnp.zeros((2, 4)))
    with pytest.raises(TypeError, match="reset must be an array of bools, got dtype int32"):
        LAYER.step(None, TOKENS[0], reset=jnp.ones(2, jnp.int32))


def test_a_carry_that_does_not_fit_is_named():
    three = LAYER.initialize_carry((3, D))
    for carry, message in [
        (three, r"carry.memory.now.weights\[0\] must be float32 of shape \(2, 1, 4, 6\) for inputs of B = 2 ex"),
        (three._replace(position=None), "carry must be a LayerCarry of this layer"),
        (jnp.zeros(2), "carry must be a LayerCarry of this layer"),
    ]:
        for call, inputs in ((LAYER, TOKENS), (LAYER.step, TOKENS[0])):
            with pytest.raises(ValueError, match=message):
                call(carry, inputs)
    fits = LAYER.initialize_carry((2, D))
    with pytest.raises(ValueError, match=r"carry.position must be int32 of shape \(2,\) .*got float32 of \(2,\): pass"):
        LAYER(fits._replace(position=jnp.zeros(2)), TOKENS)
