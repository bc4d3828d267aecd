"""Trains an Equinox module that holds a memory. Run it with `python -m examples.equinox_model`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from mnm_jax import Memory, MemoryParams, gradient_memory


class Recall(eqx.Module):
    """Writes one pair per step and then recalls the value of the first cue; phi_0 and the map to keys are learned."""

    memory: Memory = eqx.field(static=True)
    params: MemoryParams
    to_key: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        self.memory = gradient_memory(8, 3, hidden_sizes=(16,))
        self.params = self.memory.init(key)
        self.to_key = eqx.nn.Linear(4, 8, key=jax.random.fold_in(key, 1))

    def __call__(self, cues: jax.Array, values: jax.Array) -> jax.Array:
        """Returns the values `[B, 3]` recalled for the first of cues `[T, B, 4]` with values `[T, B, 3]`."""
        keys = jnp.tanh(jax.vmap(jax.vmap(self.to_key))(cues))

        def write(state, pair):
            return self.memory.write(self.params, state, *pair, jnp.ones(cues.shape[1]))[0], None

        pairs = keys[:, :, None], values[:, :, None]  # one head: [T, B, H, K] and [T, B, H, V]
        state, _ = jax.lax.scan(write, self.memory.start(self.params, cues.shape[1]), pairs)
        return self.memory.read(self.params, state, keys[0][:, None])[:, 0]


def train(steps: int = 200) -> list[float]:
    """Returns the losses of learning to recall the first of four random pairs."""
    model, optimizer, losses = Recall(jax.random.key(0)), optax.adam(1e-2), []
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model, state, key):
        cues, values = jnp.split(jax.random.normal(key, (4, 32, 7)), [4], axis=-1)
        loss, grads = eqx.filter_value_and_grad(lambda m: jnp.mean((m(cues, values) - values[0]) ** 2))(model)
        updates, state = optimizer.update(grads, state)
        return eqx.apply_updates(model, updates), state, loss

    for key in jax.random.split(jax.random.key(1), steps):
        model, state, loss = step(model, state, key)
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
