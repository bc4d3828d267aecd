"""What every task keeps to. A new task is one line in SETTINGS."""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch.runs.build import build_task
from launch.runs.registry import TASKS
from mnm_jax.training import Batch

BABI_DATA = Path(__file__).resolve().parents[3] / "shared/data/babi"
B = 4
SETTINGS = {
    "dictionary": {"name": "dictionary", "evaluation_batches": 2},
    "dictionary-long": {"name": "dictionary", "length": 3, "support": 2, "evaluation_batches": 2, "wider": False},
    "dictionary-mixed": {"name": "dictionary", "length": 3, "support": 3, "queries": 3, "mixed": True},
    "copy": {"name": "copy", "length": 5, "lengths": (7,), "evaluation_batches": 2},
    "repeat_copy": {"name": "repeat_copy", "length": 3, "repeats": 3, "lengths": (4,), "evaluation_batches": 2},
    "double_copy": {"name": "double_copy", "length": 4, "lengths": (6,), "evaluation_batches": 2, "curriculum": 10},
    "associative_recall": {"name": "associative_recall", "length": 3, "lengths": (4,), "evaluation_batches": 2},
    "priority_sort": {"name": "priority_sort", "length": 6, "lengths": (8,), "evaluation_batches": 2},
    "pairs": {"name": "pairs", "length": 5, "lengths": (2, 8), "evaluation_batches": 2},
    "babi": {"name": "babi", "tasks": (1, 6), "size": "1k", "data_dir": str(BABI_DATA), "embedding_features": 5},
}


@pytest.fixture(scope="module", params=SETTINGS)
def task(request, tmp_path_factory):
    settings = SETTINGS[request.param]
    if settings["name"] == "babi":
        for package in ("array_record", "grain", "tensorflow_datasets"):
            pytest.importorskip(package)
        if not BABI_DATA.is_dir():
            pytest.skip("no bAbI data: put the official tasks_1-20_v1-2.tar.gz into ../shared/data/babi")
        settings = settings | {"cache_dir": str(tmp_path_factory.mktemp("cache"))}
    return build_task(settings)


def test_every_task_is_here():
    # Tasks that are played are in tests/tasks/test_actor_critic.py.
    played = {name for name, entry in TASKS.items() if hasattr(entry.load(), "play")}
    assert {settings["name"] for settings in SETTINGS.values()} == set(TASKS) - played


@functools.cache
def sampler(task):
    return jax.jit(task.sample, static_argnums=1)


def training_batches(task, seed, count):
    """The first batches of a training stream, as numpy arrays."""
    if task.sample is None:
        return list(itertools.islice(task.loader(seed, B), count))
    keys = jax.random.split(jax.random.key(seed), count)
    return [jax.device_get(sampler(task)(key, B)) for key in keys]


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: x.tobytes() == y.tobytes() and x.dtype == y.dtype, a, b))


def random_logits(task, batch, seed=0):
    return jax.random.normal(jax.random.key(seed), (*batch.mask.shape, task.output_features))


def asks_for_bits(batch):
    return batch.targets.ndim == 3


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(task):
    first, again, other = (training_batches(task, seed, 2) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first[0], first[1]) and not same(first[0], other[0])


def test_exactly_one_source_of_batches(task):
    assert (task.sample is None) != (task.loader is None)


def every_batch(task):
    """A training batch and the first and last of every evaluation set."""
    yield from training_batches(task, 0, 1)
    for split in ("valid", "test"):
        for batches in task.evaluations(split, B).values():
            drawn = list(batches())
            yield from (jax.device_get(drawn[0]), jax.device_get(drawn[-1]))


def test_batches_are_what_model_and_loss_expect(task):
    encoder = task.encoder(nnx.Rngs(0))
    seen = set()
    for batch in every_batch(task):
        assert isinstance(batch, Batch)
        shape = batch.inputs.shape[:2]
        assert shape[1] == B or task.sample is None  # one that reads chooses: an example may ask more than once
        assert (batch.targets.shape[:2], batch.loss_mask.shape, batch.mask.shape) == (shape,) * 3
        if asks_for_bits(batch):
            assert batch.targets.shape[2] == task.output_features and batch.targets.dtype == np.float32
        else:
            assert np.issubdtype(batch.targets.dtype, np.integer)
        assert (batch.loss_mask.dtype, batch.mask.dtype) == (np.float32, np.bool_)
        if batch.fork is not None:
            assert (batch.fork.shape, batch.fork.dtype) == (shape, np.bool_)
            assert not np.any(batch.fork & ~batch.mask)
        features = jax.eval_shape(encoder, jnp.asarray(batch.inputs))
        assert (features.shape, features.dtype) == ((*shape, task.input_features), jnp.float32)
        counted = batch.loss_mask > 0
        assert set(np.unique(batch.loss_mask)) <= {0, 1} and counted.any()
        assert not np.any(counted & ~batch.mask)  # padding never counts
        assert np.all(np.sort(batch.mask, 0)[::-1] == batch.mask)  # and comes last
        seen |= set(batch.targets[counted].ravel())
        classes = 2 if asks_for_bits(batch) else task.output_features
        assert all(target in range(classes) for target in seen)
    assert len(seen) > 1


def test_the_oracle_has_no_loss_and_full_marks(task):
    for batch in every_batch(task):
        bits = batch.targets if asks_for_bits(batch) else jax.nn.one_hot(batch.targets, task.output_features)
        logits = 1e4 * (2 * bits - 1)
        loss, metrics = task.loss(logits, batch), task.metrics(logits, batch)
        assert float(loss.value) == pytest.approx(0, abs=1e-6)
        assert float(metrics["accuracy"].value) == 1
        assert loss.count == metrics["accuracy"].count == batch.loss_mask.sum()
        wrong = task.metrics(-logits, batch)
        assert float(wrong["accuracy"].value) == 0


def test_equal_logits_lose_the_log_of_the_number_of_classes(task):
    (batch,) = training_batches(task, 0, 1)
    loss = task.loss(jnp.zeros((*batch.mask.shape, task.output_features)), batch)
    assert float(loss.value) == pytest.approx(np.log(2 if asks_for_bits(batch) else task.output_features), rel=1e-5)


def numbers(task, logits, batch):
    """Totals and counts of the loss and of every metric."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves((task.loss(logits, batch), dict(task.metrics(logits, batch))))]


@pytest.mark.parametrize("value", [0.0, -1e6, np.inf, np.nan])
def test_what_does_not_count_changes_no_number(task, value):
    (batch,) = training_batches(task, 0, 1)
    logits = random_logits(task, batch)
    expected = numbers(task, logits, batch)
    counted = batch.loss_mask > 0
    other = jnp.where(counted[..., None], logits, value)
    where = counted[..., None] if asks_for_bits(batch) else counted
    changed = batch._replace(targets=np.where(where, batch.targets, np.zeros_like(batch.targets)))
    np.testing.assert_array_equal(numbers(task, other, changed), expected)


def test_padding_changes_no_number(task):
    (batch,) = training_batches(task, 0, 1)
    logits = random_logits(task, batch)
    steps, examples = batch.mask.shape
    padded = jax.tree.map(lambda x: np.zeros((steps + 3, examples + 2, *x.shape[2:]), x.dtype), batch)
    for whole, part in zip(jax.tree.leaves(padded), jax.tree.leaves(batch), strict=True):
        whole[:steps, :examples] = part
    more = random_logits(task, padded, seed=1).at[:steps, :examples].set(logits)
    np.testing.assert_allclose(numbers(task, more, padded), numbers(task, logits, batch), rtol=1e-6)


def test_the_loss_has_no_gradient_where_no_step_counts(task):
    (batch,) = training_batches(task, 0, 1)
    gradient = jax.grad(lambda logits: task.loss(logits, batch).total)(random_logits(task, batch))
    np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=-1), batch.loss_mask > 0)


def test_evaluations_give_the_same_bytes_on_every_call(task):
    for split in ("valid", "test"):
        first, again = (task.evaluations(split, B) for _ in range(2))
        assert "" in first and list(first) == list(again)
        for name in first:
            batches = [list(jax.device_get(list(source()))) for source in (first[name], first[name], again[name])]
            assert same(batches[0], batches[1]) and same(batches[0], batches[2])


def test_pictures_show_every_real_step(task):
    (batch,) = training_batches(task, 0, 1)
    for index in range(batch.mask.shape[1]):
        picture, tokens = task.render(batch, index), task.tokens(batch, index)
        assert len(tokens) == batch.mask[:, index].sum()
        place = 0
        for token in tokens:  # one after the other in the picture
            place = picture.index(token, place) + len(token)
        assert len(picture[place:].split()) >= 1  # what is to be answered follows
