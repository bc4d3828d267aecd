"""Trains a language model of the memory layer and sliding-window attention on windows, and then streams it.

Attention sees the last 16 characters, and the memory stores all characters. Streamed one by one with a carry, they get
the same logits as in a window. Run it with `python -m examples.layer_beside_attention`.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from examples.language_model import text
from mnm_jax import NeuralMemoryLayer, WriteOptions, local_memory

SIZE, SPAN, CHARACTERS = 32, 16, len(text.ALPHABET)


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        memory = local_memory(16, 16, hidden_sizes=(16,), write_through=True, options=WriteOptions("l2", forget=True))
        self.memory = NeuralMemoryLayer(SIZE, memory, heads=2, chunk=16, rngs=rngs)
        self.embed, self.readout = nnx.Embed(CHARACTERS, SIZE, rngs=rngs), nnx.Linear(SIZE, CHARACTERS, rngs=rngs)
        self.to_vectors = nnx.Linear(SIZE, 3 * SIZE, use_bias=False, rngs=rngs)

    def start(self, batch: int) -> tuple:
        return self.memory.initialize_carry((batch, SIZE)), jnp.zeros((batch, SPAN - 1, 3 * SIZE))

    def __call__(self, carry: tuple, characters: jax.Array) -> tuple[tuple, jax.Array]:
        x = self.embed(characters)  # [T, B, D]
        memory, recalled = self.memory(carry[0], x)
        vectors = jnp.concatenate([carry[1].swapaxes(0, 1), self.to_vectors(x)])
        near = vectors[jnp.arange(len(x))[:, None] + jnp.arange(SPAN)[None]]  # [T, SPAN, B, 3 D]
        query, key, value = near[:, -1, :, :SIZE], near[..., SIZE : 2 * SIZE], near[..., 2 * SIZE :]
        attended = jnp.einsum("tbj,tjbd->tbd", jax.nn.softmax(jnp.einsum("tbd,tjbd->tbj", query, key) / 6), value)
        return (memory, vectors[len(x) :].swapaxes(0, 1)), self.readout(x + recalled + attended)


@nnx.jit
def update(model: Model, optimizer: nnx.Optimizer, rows: jax.Array) -> jax.Array:
    def loss(model: Model) -> jax.Array:
        _, logits = model(model.start(rows.shape[1]), rows[:-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows[1:]).mean()

    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    return value


if __name__ == "__main__":
    content, model = jnp.asarray(text.load(most=40)["train"], jnp.int32), Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    starts = jax.random.randint(jax.random.key(0), (40, 1, 8), 0, len(content) - 50)
    losses = [float(update(model, optimizer, content[start + jnp.arange(50)[:, None]])) for start in starts]
    run, row, carry, streamed = nnx.jit(Model.__call__), content[:50, None], model.start(1), []
    for t in range(50):
        carry, logits = run(model, carry, row[t : t + 1])
        streamed.append(logits)
    difference = float(jnp.max(jnp.abs(jnp.concatenate(streamed) - run(model, model.start(1), row)[1])))
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; streamed characters differ by {difference:.0e}")
