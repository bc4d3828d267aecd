"""The network that is the memory: f(k; phi), a small MLP with an identity output."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Product = Callable[[int, Array], Array]  # (layer l, x [B, H, I]) -> x W_l [B, H, O]


class Network(NamedTuple):
    """sizes: `(K, hidden..., V)`; activation of the hidden layers; use_bias: a constant one is fed to every layer."""

    sizes: tuple[int, ...]
    activation: Callable[[Array], Array]
    use_bias: bool

    @property
    def depth(self) -> int:
        return len(self.sizes) - 1


class Activations(NamedTuple):
    """inputs: x_l `[B, H, I]` of each layer (with the constant one, if any); outputs: z_l `[B, H, O]`."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]


def init(network: Network, key: Array, gain: float, dtype: jnp.dtype) -> tuple[Array, ...]:
    """W_l ~ N(0, gain^2 / fan_in), biases zero; one `[I (+ 1), O]` a layer."""
    initializer = jax.nn.initializers.variance_scaling(gain**2, "fan_in", "normal")
    keys = jax.random.split(key, network.depth)
    weights = []
    for layer_key, fan_in, fan_out in zip(keys, network.sizes[:-1], network.sizes[1:], strict=True):
        w = initializer(layer_key, (fan_in, fan_out), dtype)
        weights.append(jnp.pad(w, ((0, 1), (0, 0))) if network.use_bias else w)
    return tuple(weights)


def forward(network: Network, product: Product, keys: Array, probes: Sequence[Array] | None = None) -> Activations:
    """z_0 = k;  z_l = act(x_l W_l + p_l), x_l = z_{l-1} or [z_{l-1}; 1];  the last layer has no activation.

    The probes p_l `[B, H, O]` (zero if absent) give d/dp_l = d/d(x_l W_l) =: delta_l, so that the gradient of W_l
    is x_l (x) delta_l whatever way the weights are stored.
    """
    inputs, outputs = [], []
    z = keys
    for layer in range(network.depth):
        x = jnp.concatenate([z, jnp.ones_like(z[..., :1])], -1) if network.use_bias else z
        z = product(layer, x)
        if probes is not None:
            z = z + probes[layer]
        if layer < network.depth - 1:
            z = network.activation(z)
        inputs.append(x)
        outputs.append(z)
    return Activations(tuple(inputs), tuple(outputs))
