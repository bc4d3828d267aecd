"""Tests that a task's mistakes are named before the first update, which would run with most of them."""

import dataclasses
import re

import jax.numpy as jnp
import pytest

from mnm_jax.training import Mean, train


def spoil(tiny, name, change):
    """Returns the task with one member changed: `change` gets what the member returns."""

    @dataclasses.dataclass(frozen=True)
    class Spoiled(tiny.Recall):
        pass

    if name == "sample":
        draw = tiny.Recall().sample
        Spoiled.sample = property(lambda self: lambda *args: change(draw(*args)))
    else:
        member = getattr(tiny.Recall, name)
        setattr(Spoiled, name, lambda self, logits, batch: change(member(self, logits, batch)))
    return Spoiled()


def batch_major(batch):
    return batch._replace(**{name: jnp.swapaxes(batch._asdict()[name], 0, 1) for name in batch._fields[:4]})


CASES = [
    ("sample", batch_major, "sample must return 8 examples, got a mask of (8, 5); time is first, [T, B]."),
    ("sample", lambda batch: batch._replace(mask=batch.mask[0]), "mask must be [T, B], got bool[8]."),
    (
        "sample",
        lambda batch: batch._replace(mask=batch.mask.astype(jnp.float32)),
        "mask must be bool of (5, 8), got float32[5, 8].",
    ),
    (
        "sample",
        lambda batch: batch._replace(targets=batch.targets[0]),
        "targets must begin with the shape of mask, (5, 8), got int32[8]: broadcast it.",
    ),
    ("loss", lambda mean: mean.value, "loss must be a Mean of a total and a count, each one number, got "),
    (
        "loss",
        lambda mean: Mean(jnp.ones((5, 8)) * mean.total, mean.count),
        "loss must be a Mean of a total and a count, each one number, got Mean (float32[5, 8], float32[]).",
    ),
    (
        "metrics",
        lambda means: {"accuracy": means["accuracy"].value},
        "metrics['accuracy'] must be a Mean of a total and a count, each one number, got ",
    ),
    ("metrics", lambda means: means["accuracy"], "metrics must return a mapping of means, got Mean."),
]


@pytest.mark.parametrize(("member", "change", "message"), CASES)
def test_a_mistake_of_a_task_is_named_before_the_first_update(tiny, tmp_path, member, change, message):
    with pytest.raises(ValueError, match=re.escape(f"task recall: {message}")):
        train(spoil(tiny, member, change), tiny.Model, tiny.config(seeds=1), tmp_path)
    assert not (tmp_path / "checkpoints").exists()
