"""Trains a Linen model that contains the cell, through `nnx.bridge`.

Run it with `python -m examples.linen_model`.
"""

import jax
import optax
from flax import linen, nnx

from mnm_jax import MNMCell, gradient_memory, unroll


class MemoryLayer(nnx.Module):
    """Maps inputs `[T, B, D]` to the cell's features `[T, B, F]`."""

    def __init__(self, in_features: int, *, rngs: nnx.Rngs):
        self.cell = MNMCell(in_features, 16, gradient_memory(8, 8, hidden_sizes=(8,)), rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        _, outputs = unroll(self.cell, None, inputs)
        return outputs.features


class Model(linen.Module):
    @linen.compact
    def __call__(self, inputs):
        inputs = linen.Dense(12)(inputs)
        inputs = nnx.bridge.to_linen(MemoryLayer, 12)(inputs)
        return linen.Dense(1)(inputs)


def train(steps: int = 60) -> list[float]:
    """Returns the losses of a Linen model that learns to output its input of two steps earlier."""
    model, inputs = Model(), jax.random.normal(jax.random.key(0), (6, 16, 3))
    wanted = inputs[:-2, :, :1]
    variables = model.init(jax.random.key(1), inputs)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, opt_state):
        def loss(params):
            return optax.squared_error(model.apply({**variables, "params": params}, inputs)[2:], wanted).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, value

    params, opt_state, losses = variables["params"], optimizer.init(variables["params"]), []
    for _ in range(steps):
        params, opt_state, value = step(params, opt_state)
        losses.append(float(value))
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
