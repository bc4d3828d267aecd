"""Loss and metrics of tasks that ask for one class, or for a vector of bits, at some steps.

A step counts where `batch.loss_mask` is 1; logits of other steps do not affect losses and metrics, even if infinite.

Shape letters: `T` time steps, `B` examples, `C` classes or bits.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from mnm_jax._precision import wide
from mnm_jax.training import Batch, Mean

Array = jax.Array


def cross_entropy(logits: Array, batch: Batch) -> Mean:
    """Returns -log softmax(logits)[target] in nats per counted step, in float32 or wider; logits `[T, B, C]`."""
    return _mean(optax.softmax_cross_entropy_with_integer_labels(wide(logits), batch.targets), batch)


def accuracy(logits: Array, batch: Batch) -> Mean:
    """Returns the fraction of counted steps at which the target has the largest logit; logits `[T, B, C]`."""
    return _mean((jnp.argmax(logits, -1) == batch.targets).astype(batch.loss_mask.dtype), batch)


def accuracy_and_error(logits: Array, batch: Batch) -> Mapping[str, Mean]:
    """Returns "accuracy" and "error" = 1 - accuracy; logits `[T, B, C]`."""
    right = accuracy(logits, batch)
    return {"accuracy": right, "error": Mean(total=right.count - right.total, count=right.count)}


def bit_cross_entropy(logits: Array, batch: Batch) -> Mean:
    """Returns the sigmoid cross entropy in nats per bit of counted steps; logits and targets `[T, B, C]`."""
    return _mean(jnp.mean(optax.sigmoid_binary_cross_entropy(wide(logits), batch.targets), -1), batch)


def bit_accuracy(logits: Array, batch: Batch) -> Mean:
    """Returns the fraction of right bits at counted steps; logits and targets `[T, B, C]`."""
    return _mean(jnp.mean(_right_bits(logits, batch), -1, dtype=batch.loss_mask.dtype), batch)


def whole_sequences(logits: Array, batch: Batch) -> Mean:
    """Returns the fraction of sequences without a wrong bit, among those with a counted step."""
    counted = jnp.asarray(batch.loss_mask > 0)
    wrong = jnp.any(counted & ~jnp.all(_right_bits(logits, batch), -1), axis=0)
    asked = jnp.any(counted, axis=0)
    dtype = batch.loss_mask.dtype
    return Mean(total=jnp.sum(asked & ~wrong, dtype=dtype), count=jnp.sum(asked, dtype=dtype))


def _mean(values: Array, batch: Batch) -> Mean:
    """Returns the mean of values `[T, B]` over counted steps."""
    # jnp.where, not a product: 0 times an infinite or undefined value is undefined.
    return Mean(total=jnp.sum(jnp.where(batch.loss_mask > 0, values, 0)), count=jnp.sum(batch.loss_mask))


def _right_bits(logits: Array, batch: Batch) -> Array:
    return (logits > 0) == (batch.targets > 0.5)
