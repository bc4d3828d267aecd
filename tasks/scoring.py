"""Loss and metrics of tasks that ask at some steps: for one class, or for a vector of bits."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from mnm_jax.training._task import Batch, Mean

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


def bit_cross_entropy(logits: Array, batch: Batch) -> Mean:
    """Sigmoid cross entropy in nats a bit, summed over counted steps; logits and targets `[T, B, C]`."""
    if jnp.finfo(logits.dtype).bits < 32:
        logits = logits.astype(jnp.float32)
    losses = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, batch.targets), -1)
    return Mean(jnp.sum(jnp.where(batch.loss_mask > 0, losses, 0)), jnp.sum(batch.loss_mask))


def bit_accuracy(logits: Array, batch: Batch) -> Mean:
    """Fraction of bits on whose side the logit is, over counted steps; logits and targets `[T, B, C]`."""
    right = jnp.mean(_right_bits(logits, batch), -1, dtype=batch.loss_mask.dtype)
    return Mean(jnp.sum(jnp.where(batch.loss_mask > 0, right, 0)), jnp.sum(batch.loss_mask))


def whole_sequences(logits: Array, batch: Batch) -> Mean:
    """Fraction of sequences, of those with a counted step, that have every bit right."""
    counted = jnp.asarray(batch.loss_mask > 0)
    wrong = jnp.any(counted & ~jnp.all(_right_bits(logits, batch), -1), axis=0)
    asked = jnp.any(counted, axis=0)
    dtype = batch.loss_mask.dtype
    return Mean(jnp.sum(asked & ~wrong, dtype=dtype), jnp.sum(asked, dtype=dtype))


def _right_bits(logits: Array, batch: Batch) -> Array:
    return (logits > 0) == (batch.targets > 0.5)
