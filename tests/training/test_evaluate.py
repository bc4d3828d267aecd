"""Tests evaluation over whole sets against values worked by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnm_jax.training import Batch, Mean, SequenceOutput, evaluate, init_state, split_model
from mnm_jax.training._update import losses


def test_metrics_are_over_all_counted_steps_of_a_set_and_not_means_of_means(tiny):
    graphdef, state = split_model(tiny.Model), init_state(tiny.Model, optax.identity(), 0, 2)
    found = evaluate(graphdef, state.params, tiny.Recall(), "valid", 8)
    alone = evaluate(graphdef, state.params, tiny.Recall(), "valid", 8, devices=jax.local_devices()[:1])
    names = {"loss", "meta_loss", "accuracy"}
    assert set(found) == {f"valid/{n}" for n in names} | {f"valid/noise=0/{n}" for n in names}
    for name, value in found.items():
        np.testing.assert_allclose(value, alone[name], rtol=1e-6)  # the last batch has 3 examples for 8 devices

    @jax.jit
    def run(model, batch):
        output = model(batch.inputs, **batch.flags)
        return output, tiny.Recall().loss(output.logits, batch).total

    for (name, batches), seed in itertools.product(tiny.Recall().evaluations("valid", 8).items(), range(2)):
        model = nnx.merge(graphdef, jax.tree.map(lambda leaf, seed=seed: np.asarray(leaf)[seed], state.params))
        loss = right = counted = norms = real = 0.0
        for batch in batches():
            output, total = jax.device_get(run(model, batch))
            loss += total
            right += np.sum((np.argmax(output.logits, -1) == batch.targets) * batch.loss_mask)
            counted += np.sum(batch.loss_mask)
            norms += np.sum(output.meta_loss * batch.mask)
            real += np.sum(batch.mask)
        prefix = f"valid/{name}/" if name else "valid/"
        np.testing.assert_allclose(found[f"{prefix}loss"][seed], loss / counted, rtol=1e-5)
        np.testing.assert_allclose(found[f"{prefix}accuracy"][seed], right / counted, rtol=1e-6)
        np.testing.assert_allclose(found[f"{prefix}meta_loss"][seed], norms / real, rtol=1e-5)


def test_a_meta_loss_in_bfloat16_is_averaged_in_single_precision():
    class Model:
        def __call__(self, inputs, *, mask):
            return SequenceOutput(inputs, jnp.ones(mask.shape, jnp.bfloat16), None, None)

    class Free:
        def loss(self, logits, batch):
            return Mean(jnp.float32(0), jnp.float32(1))

    batch = Batch(inputs=np.zeros((64, 100)), targets=None, loss_mask=None, mask=np.ones((64, 100), bool))
    mean = losses(Model(), Free(), batch)[1]
    assert (float(mean.total), float(mean.count)) == (6400.0, 6400.0)


def test_a_set_without_batches_is_an_error(tiny):
    class Empty(tiny.Recall):
        def evaluations(self, split, batch_size):
            return {"support=32": lambda: iter(())}

    state = init_state(tiny.Model, optax.identity(), 0, 1)
    with pytest.raises(ValueError, match="the evaluation 'support=32' of the split 'test' yields no batch"):
        evaluate(split_model(tiny.Model), state.params, Empty(), "test", 8)


@pytest.mark.parametrize(
    "split, size, error, message",
    [
        ("train", 8, ValueError, "split must be one of 'valid', 'test', got 'train'"),
        ("test", 0, ValueError, "batch_size must be >= 1, got 0"),
        ("test", 8.0, TypeError, "batch_size must be an integer >= 1, got 8.0 of type float"),
    ],
)
def test_wrong_arguments_are_named(tiny, split, size, error, message):
    with pytest.raises(error, match=message):
        evaluate(None, None, tiny.Recall(), split, size)
