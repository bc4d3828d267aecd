"""Layers, inputs and runs that the tests of the layer share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax import NeuralMemoryLayer, WriteOptions, gradient_memory, local_memory, matrix_memory

D, K, V, B = 5, 4, 3, 2
BOTH = WriteOptions("l2", forget=True, momentum=True)
TWO_LAYERS = {"hidden_sizes": (6,)}


def make_memory(name, options=None, dtype=jnp.float64, **settings):
    options = WriteOptions() if options is None else options
    if name in ("delta", "hebbian"):
        return matrix_memory(K, V, name, options=options, learn_initial=True, param_dtype=dtype, **settings)
    factory = {"local": local_memory, "gradient": gradient_memory}[name]
    return factory(K, V, options=options, param_dtype=dtype, **({"hidden_sizes": ()} | settings))


def make_layer(memory, param_dtype=jnp.float64, features=D, **settings):
    """Returns a layer with all parameters random."""
    layer = NeuralMemoryLayer(features, memory, param_dtype=param_dtype, rngs=nnx.Rngs(0), **settings)
    graphdef, params = nnx.split(layer)
    rng = np.random.default_rng(1)
    noisy = lambda x: jnp.asarray(x + (0.3 * rng.normal(size=x.shape)).astype(x.dtype))  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(noisy, jax.device_get(params)))


# The forms in which a chunk is computed, and all kinds of gates.
FORMS = {
    "local-linear": (("local", BOTH), {}, {}),
    "local": (("local", BOTH), TWO_LAYERS, {"heads": 2}),
    "local-deep": (("local", WriteOptions("l2")), {"hidden_sizes": (6, 6), "step_size": "paper"}, {}),
    "delta": (("delta", WriteOptions("l2", forget=True)), {}, {"heads": 2}),
    "hebbian": (("hebbian", WriteOptions(momentum=True)), {}, {}),
    "gradient": (("gradient", BOTH), TWO_LAYERS, {"heads": 2}),
    "gradient-paper": (("gradient", WriteOptions("l2", forget=True)), TWO_LAYERS | {"step_size": "paper"}, {}),
    "stale": (("gradient", BOTH), TWO_LAYERS | {"step_size": "paper"}, {"stale": True}),
    "convolution": (("gradient", BOTH), TWO_LAYERS, {"heads": 2, "convolution": 3}),
}


def make_form(name, chunk=4):
    given, settings, of_layer = FORMS[name]
    return make_layer(make_memory(*given, **settings), chunk=chunk, **of_layer)


def make_inputs(steps, dtype=jnp.float64):
    return np.random.default_rng(2).normal(size=(steps, B, D)).astype(dtype)


@partial(jax.jit, static_argnames="return_loss")
def run_by_steps(layer, inputs, carry=None, reset=None, return_loss=False):
    carry = layer.initialize_carry(inputs.shape[1:]) if carry is None else carry
    step = lambda carry, x: layer.step(carry, x[0], reset=x[1], return_loss=return_loss)  # noqa: E731
    return jax.lax.scan(step, carry, (inputs, reset))


@partial(jax.jit, static_argnames="return_loss")
def run_by_chunks(layer, inputs, carry=None, mask=None, reset=None, return_loss=False):
    return layer(carry, inputs, mask=mask, reset=reset, return_loss=return_loss)


def assert_close(a, b, rtol=1e-12, atol=1e-12):
    """Compares pytrees; `rtol` is relative to the largest number of a leaf."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol + rtol * np.max(np.abs(y), initial=0))


@jax.jit
def tokens_of(layer, inputs):
    """Returns keys, values, queries `[T, B, H, .]` and gates `[T, B, H, 1 + gates]`; without a convolution."""
    heads = lambda x: x.reshape(*x.shape[:2], layer.heads, -1)  # noqa: E731
    logits = inputs @ layer.to_gates.kernel.get_value() + layer.to_gates.bias.get_value()[None, None]
    vectors = heads(inputs @ layer.to_vectors.kernel.get_value())
    gates = heads(jax.nn.sigmoid(logits))
    rate = jnp.minimum(1, jnp.maximum(0, 1.2 * gates[..., 0] - 0.1)) if layer.hard_rate else gates[..., 0]
    gates = gates.at[..., 0].set(layer.max_rate * rate)
    return *jnp.split(vectors, [K, K + V], axis=-1), gates


def write_token_by_token(layer, inputs):
    """Runs the layer by `memory.write_read`: last weights and running writes per head, outputs, losses before."""
    memory, tokens = layer.memory, tokens_of(layer, inputs)

    def run(params, *tokens):
        def step(state, token):
            k, v, q, g = token
            named = {name: g[:, 1 + place] for place, name in enumerate(memory.gates)}
            state, info, read = memory.write_read(params, state, k[:, None], v[:, None], g[:, 0], q[:, None], **named)
            return state, (read[:, 0], info.loss_before)

        return jax.lax.scan(step, memory.start(params, B), tokens)

    states, (answers, losses) = jax.vmap(run, (0, 2, 2, 2, 2), (1, 2))(layer.memory_params.get_value(), *tokens)
    surprise = getattr(states, "surprise", None) or ()
    outputs = answers.reshape(*answers.shape[:2], -1) @ layer.to_output.kernel
    return (tuple(states.weights), tuple(surprise)), outputs, losses
