"""Two cells for the recipe: a recurrence in plain JAX, and the library's cell with another memory.

A function named in a recipe takes `features` (D, of the task's encoder), `rngs` and settings, and returns a cell.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax import MNMCell, matrix_memory


class GatedCell(nnx.RNNCellBase):
    """f = sigmoid(A [x, h]),  h' = (1 - f) h + f tanh(B [x, f h]), the minimal gated unit (Zhou et al., 2016)."""

    num_feature_axes = 1

    def __init__(self, features, hidden_features, *, rngs):
        self.in_features, self.out_features = features, hidden_features
        self.gate = nnx.Linear(features + hidden_features, hidden_features, rngs=rngs)
        self.candidate = nnx.Linear(features + hidden_features, hidden_features, rngs=rngs)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], self.out_features))

    def __call__(self, carry, inputs):
        gate = jax.nn.sigmoid(self.gate(jnp.concatenate([inputs, carry], -1)))
        candidate = jnp.tanh(self.candidate(jnp.concatenate([inputs, gate * carry], -1)))
        carry = (1 - gate) * carry + gate * candidate
        return carry, carry


def make_gated(*, features: int, hidden_features: int, rngs: nnx.Rngs) -> GatedCell:
    return GatedCell(features, hidden_features, rngs=rngs)


def make_delta(*, features: int, hidden_features: int, memory_features: int, rngs: nnx.Rngs) -> MNMCell:
    """Returns a cell whose memory is one matrix with the delta rule."""
    memory = matrix_memory(memory_features, memory_features, rule="delta")
    return MNMCell(features, hidden_features, memory, rngs=rngs)
