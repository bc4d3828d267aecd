"""Loss and metrics of tasks that ask for one class at some steps."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from mnm_jax.training.task import Batch, Mean

Array = jax.Array


def cross_entropy(logits: Array, batch: Batch) -> Mean:
    """-log softmax(logits)[target] in nats, summed over counted steps; logits `[T, B, C]`, in float32 at least."""
    if jnp.finfo(logits.dtype).bits < 32:
        logits = logits.astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    # Not a product: where a step does not count, not even an infinite logit may reach the sum.
    return Mean(jnp.sum(jnp.where(batch.loss_mask > 0, losses, 0)), jnp.sum(batch.loss_mask))


def accuracy(logits: Array, batch: Batch) -> Mean:
    """Fraction of counted steps whose largest logit is the target's."""
    right = jnp.argmax(logits, -1) == batch.targets
    return Mean(jnp.sum(jnp.where(right, batch.loss_mask, 0)), jnp.sum(batch.loss_mask))


def error(logits: Array, batch: Batch) -> Mapping[str, Mean]:
    """{"accuracy", "error"}: error = 1 - accuracy."""
    right = accuracy(logits, batch)
    return {"accuracy": right, "error": Mean(right.count - right.total, right.count)}
