"""Runs the cell in `nnx.RNN`, with flax's own sequence lengths.

Run it with `python -m examples.flax_rnn`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax import MNMCell, local_memory


def run() -> jax.Array:
    """Returns the features `[B, T, F]` of a padded batch; the batch is the first axis in flax's RNN."""
    cell = MNMCell(5, 16, local_memory(8, 8, hidden_sizes=(8,)), heads=2, rngs=nnx.Rngs(0))
    rnn = nnx.RNN(cell, rngs=nnx.Rngs(1))
    inputs = jax.random.normal(jax.random.key(0), (3, 7, 5))
    run_rnn = nnx.jit(lambda rnn, inputs, lengths: rnn(inputs, seq_lengths=lengths))
    return run_rnn(rnn, inputs, jnp.array([7, 4, 2])).features


if __name__ == "__main__":
    features = run()
    print("features", features.shape)
