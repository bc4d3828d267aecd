"""The network that is the memory: f(k; phi), a small MLP with an identity output."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax.memory._types import Storage

Array = jax.Array


class Network(NamedTuple):
    """sizes: `(K, hidden..., V)`; activation of the hidden layers; use_bias: a constant one is fed to every layer."""

    sizes: tuple[int, ...]
    activation: Callable[[Array], Array]
    use_bias: bool

    @property
    def depth(self) -> int:
        return len(self.sizes) - 1


class Activations(NamedTuple):
    """What a forward pass leaves behind, layer by layer.

    inputs: x_l `[B, H, I]` (with the constant one, if any); outputs: z_l `[B, H, O]`; slopes: of each hidden layer,
    `d z_l -> d (x_l W_l)`.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    slopes: tuple[Callable[[Array], tuple[Array]], ...]


def init(network: Network, key: Array, gain: float, dtype: jnp.dtype) -> tuple[Array, ...]:
    """W_l ~ N(0, gain^2 / fan_in), biases zero; one `[I (+ 1), O]` a layer."""
    initializer = jax.nn.initializers.variance_scaling(gain**2, "fan_in", "normal")
    keys = jax.random.split(key, network.depth)
    weights = []
    for layer_key, fan_in, fan_out in zip(keys, network.sizes[:-1], network.sizes[1:], strict=True):
        w = initializer(layer_key, (fan_in, fan_out), dtype)
        weights.append(jnp.pad(w, ((0, 1), (0, 0))) if network.use_bias else w)
    return tuple(weights)


def forward(network: Network, weights: Storage, keys: Array) -> Activations:
    """z_0 = k;  z_l = act(x_l W_l), x_l = z_{l-1} or [z_{l-1}; 1];  the last layer has no activation."""
    inputs, outputs, slopes = [], [], []
    z = keys
    for layer in range(network.depth):
        x = jnp.concatenate([z, jnp.ones_like(z[..., :1])], -1) if network.use_bias else z
        z = weights.product(layer, x)
        if layer < network.depth - 1:
            z, slope = jax.vjp(network.activation, z)
            slopes.append(slope)
        inputs.append(x)
        outputs.append(z)
    return Activations(tuple(inputs), tuple(outputs), tuple(slopes))


def pull_back(network: Network, weights: Storage, passed: Activations, cotangent: Array) -> tuple[Array, ...]:
    """delta_l = (d f / d (x_l W_l))^T c `[B, H, O]` of each layer, for c `[B, H, V]`.

    The gradient of W_l is x_l (x) delta_l, whatever way the weights are stored.
    """
    deltas = [cotangent]
    for layer in range(network.depth - 1, 0, -1):
        (delta,) = passed.slopes[layer - 1](_to_inputs(network, weights, layer, deltas[0]))
        deltas.insert(0, delta)
    return tuple(deltas)


def key_cotangent(network: Network, weights: Storage, deltas: tuple[Array, ...]) -> Array:
    """(d f / d k)^T c `[B, H, K]` from what `pull_back` made of c."""
    return _to_inputs(network, weights, 0, deltas[0])


def _to_inputs(network: Network, weights: Storage, layer: int, delta: Array) -> Array:
    back = weights.product_transposed(layer, delta)
    return back[..., :-1] if network.use_bias else back
