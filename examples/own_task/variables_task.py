"""A task for the recipe: assignments to variables, then questions for the value that was assigned last.

    input   b3 a0 b1 a? b?
    answer           0  1

The data are drawn on the device. Chance is a little above 1 / values.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax.training import Batch, Mean


class Embedding(nnx.Module):
    """The encoder, learned with the model: the sum of a vector per variable and one per value or question mark."""

    def __init__(self, variables, values, features, *, rngs):
        self.variable = nnx.Embed(variables, features, rngs=rngs)
        self.value = nnx.Embed(values + 1, features, rngs=rngs)

    def __call__(self, inputs):  # [T, B, 2] -> [T, B, D]
        scale = self.value.features**0.5  # nnx.Embed starts with variance 1 / features
        return scale * (self.variable(inputs[..., 0]) + self.value(inputs[..., 1]))


@dataclasses.dataclass(frozen=True)
class Variables:
    """Assignments, then questions; the value `values` in an input is the question mark."""

    variables: int = 3
    values: int = 4
    assignments: int = 6
    questions: int = 3
    input_features: int = 16  # D, of the encoder

    name = "variables"
    loader = None  # batches are drawn, not read from files

    @property
    def output_features(self):
        return self.values

    def encoder(self, rngs):
        return Embedding(self.variables, self.values, self.input_features, rngs=rngs)

    def sample(self, key, batch_size, step=None):
        return jax.vmap(self._sequence, out_axes=1)(jax.random.split(key, batch_size))

    def _sequence(self, key):
        variable_key, value_key, question_key = jax.random.split(key, 3)
        steps = self.assignments + self.questions
        drawn = jax.random.randint(variable_key, (self.assignments,), 0, self.variables)
        # A question is for a variable that was assigned.
        asked = drawn[jax.random.randint(question_key, (self.questions,), 0, self.assignments)]
        variable = jnp.concatenate([drawn, asked])
        value = jax.random.randint(value_key, (steps,), 0, self.values)
        is_question = jnp.arange(steps) >= self.assignments
        last = jnp.max(jnp.where(drawn[None] == variable[:, None], jnp.arange(self.assignments)[None], -1), -1)
        return Batch(
            inputs=jnp.stack([variable, jnp.where(is_question, self.values, value)], -1),
            targets=jnp.where(is_question, value[last], 0),
            loss_mask=is_question.astype(jnp.float32),
            mask=jnp.ones(steps, bool),
        )

    def evaluations(self, split, batch_size):
        key = jax.random.key({"valid": 1_000_001, "test": 1_000_002}[split])  # keys that training does not use
        return {"": lambda: [self.sample(key, batch_size)]}

    def loss(self, logits, batch):
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets[..., None], -1)[..., 0]
        return self._mean(nats, batch)

    def metrics(self, logits, batch):
        return {"accuracy": self._mean((jnp.argmax(logits, -1) == batch.targets).astype(jnp.float32), batch)}

    def _mean(self, values, batch):
        return Mean(total=jnp.sum(jnp.where(batch.loss_mask > 0, values, 0.0)), count=jnp.sum(batch.loss_mask))

    def tokens(self, batch, index):
        pairs = batch.inputs[: int(batch.mask[:, index].sum()), index]
        return ["abcdefghijklmnopqrstuvwxyz"[a] + ("?" if b == self.values else str(b)) for a, b in pairs]

    def render(self, batch, index):
        tokens = self.tokens(batch, index)
        answers = " ".join(map(str, batch.targets[self.assignments :, index].tolist()))
        return f"input   {' '.join(tokens)}\nanswer  {' ' * 3 * self.assignments}{answers}"
