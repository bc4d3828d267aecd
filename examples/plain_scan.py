"""Runs the cell with `lax.scan`, `jax.grad` and `jax.jit`, which accept it because it is a pytree.

Run it with `python -m examples.plain_scan`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax import MNMCell, local_memory


def loss(cell: MNMCell, inputs: jax.Array) -> jax.Array:
    """Returns the meta objective (equation 5): the error of reading the value just written; inputs `[T, B, D]`."""
    _, outputs = jax.lax.scan(cell, cell.initialize_carry(inputs.shape[1:]), inputs)
    return jnp.mean(outputs.meta_loss)


def descend(steps: int = 20) -> list[float]:
    """Returns the losses under plain gradient descent, without an optimiser library."""
    cell = MNMCell(3, 8, local_memory(4, 4, hidden_sizes=(4,)), rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (5, 4, 3))
    step = jax.jit(jax.value_and_grad(loss))
    losses = []
    for _ in range(steps):
        value, gradient = step(cell, inputs)
        cell = jax.tree.map(lambda w, g: w - 0.3 * g, cell, gradient)
        losses.append(float(value))
    return losses


if __name__ == "__main__":
    losses = descend()
    print(f"meta loss {losses[0]:.4f} -> {losses[-1]:.4f}")
