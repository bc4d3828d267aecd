"""The memory's network `f(k; phi)`: a multilayer perceptron whose last layer has no activation.

Shape letters: `B` examples, `H` heads, `K` key features, `V` value features, `I`/`O` inputs and outputs of a layer.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax.memory._types import Storage

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Network:
    """The architecture of a memory.

        x_l = z_{l-1}, or [z_{l-1}; 1] with a bias,    z_l = act(x_l W_l),    z_0 = k,    f(k; phi) = z_L = x_L W_L

    Attributes:
      sizes: `(K, hidden sizes..., V)`.
      activation: of the hidden layers, elementwise.
      use_bias: whether every layer has a bias, kept as the last row of its weights.
    """

    sizes: tuple[int, ...]
    activation: Callable[[Array], Array]
    use_bias: bool = False

    @property
    def depth(self) -> int:
        """The number of layers `L`."""
        return len(self.sizes) - 1

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shapes `(I, O)` of the weights."""
        inputs = (size + self.use_bias for size in self.sizes[:-1])
        return tuple(zip(inputs, self.sizes[1:], strict=True))

    def layer_inputs(self, z: Array) -> Array:
        """Returns the inputs x of a layer: the outputs z of the previous layer, with a one appended for the bias."""
        return jnp.concatenate([z, jnp.ones_like(z[..., :1])], -1) if self.use_bias else z

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the activation by name, since pickle refuses compiled functions such as `jnp.tanh`."""
        return _restore, (self.sizes, _name(self.activation), self.use_bias)


def _name(function: Callable[[Array], Array]) -> Any:
    """Returns (module, name) of a function that can be imported by them, and any other function unchanged."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if module is None or name is None or getattr(importlib.import_module(module), name, None) is not function:
        return function
    return module, name


def _restore(sizes: tuple[int, ...], activation: Any, use_bias: bool) -> Network:
    if isinstance(activation, tuple):
        activation = getattr(importlib.import_module(activation[0]), activation[1])
    return Network(sizes, activation, use_bias)


class Activations(NamedTuple):
    """Results of a forward pass, one entry per layer.

    Attributes:
      inputs: x_l, `[B, H, I]`, with the constant one if the layers have biases.
      outputs: z_l, `[B, H, O]`; the last one is the answer f(k; phi), `[B, H, V]`.
      slopes: the vjp of the activation of each hidden layer, from the cotangent of z_l to that of x_l W_l.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    slopes: tuple[Callable[[Array], tuple[Array]], ...]


def init(network: Network, key: Array, gain: float, dtype: Any) -> tuple[Array, ...]:
    """Returns weights `W_l ~ N(0, gain^2 / fan_in)`, `[I, O]` per layer, with zero biases; zeros for gain 0."""
    if gain == 0:
        return tuple(jnp.zeros(shape, dtype) for shape in network.shapes)
    initializer = jax.nn.initializers.variance_scaling(gain**2, "fan_in", "normal")
    keys = jax.random.split(key, network.depth)
    weights = []
    for layer_key, fan_in, fan_out in zip(keys, network.sizes[:-1], network.sizes[1:], strict=True):
        w = initializer(layer_key, (fan_in, fan_out), dtype)
        weights.append(jnp.pad(w, ((0, 1), (0, 0))) if network.use_bias else w)
    return tuple(weights)


def forward(network: Network, weights: Storage, keys: Array) -> Activations:
    """Runs the memory's network on keys.

    Args:
      network: the architecture.
      weights: the fast weights.
      keys: `[B, H, K]`.

    Returns:
      Inputs, outputs and slopes of every layer; `outputs[-1]` is f(k; phi), `[B, H, V]`.
    """
    inputs, outputs, slopes = [], [], []
    z = keys
    for layer in range(network.depth):
        inputs.append(network.layer_inputs(z))
        z = weights.product(layer, inputs[-1])
        if layer < network.depth - 1:
            z, slope = jax.vjp(network.activation, z)
            slopes.append(slope)
        outputs.append(z)
    return Activations(tuple(inputs), tuple(outputs), tuple(slopes))


def backward(network: Network, weights: Storage, activations: Activations, cotangent: Array) -> tuple[Array, ...]:
    """Returns the cotangent of x_l W_l, `[B, H, O]`, for every layer: the delta_l of a gradient step.

    The gradient of W_l is `sum_h x_{l,h} (x) delta_{l,h}`, for any storage of the weights.

    Args:
      network: the architecture.
      weights: the fast weights.
      activations: from `forward` with the same weights.
      cotangent: the cotangent of the answer f(k; phi), `[B, H, V]`.
    """
    deltas = [cotangent]
    for layer in range(network.depth - 1, 0, -1):
        of_inputs = weights.product_transposed(layer, deltas[0])
        of_outputs = of_inputs[..., :-1] if network.use_bias else of_inputs
        deltas.insert(0, *activations.slopes[layer - 1](of_outputs))
    return tuple(deltas)
