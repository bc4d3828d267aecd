"""Tests the contract of `mnm_jax.testing` for every task, and that it finds the faults of a broken task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.runs.build import build_task
from launch.runs.registry import TASKS
from mnm_jax.testing import check_task
from mnm_jax.testing._tasks import TASK_CHECKS, batches_fit_model_and_loss, loaders_resume
from mnm_jax.training import Batch, Mean, optional_member

SETTINGS = {name: {"name": name, **entry.small} for name, entry in TASKS.items()} | {
    "dictionary-long": {"name": "dictionary", "length": 3, "support": 2, "evaluation_batches": 2, "wider": False},
    "catbabi-language": {"name": "catbabi", **TASKS["catbabi"].small, "mode": "language", "reads": "sentence"},
    "dictionary-mixed": {"name": "dictionary", "length": 3, "support": 3, "queries": 3, "mixed": True, "wider": False},
}
BABI = ("babi", "catbabi")
NEEDS = {**dict.fromkeys(BABI, ("array_record", "grain", "tensorflow_datasets")), "gymnax": ("gymnax",)}


@pytest.fixture(scope="module", params=SETTINGS)
def task(request, tmp_path_factory):
    settings = SETTINGS[request.param]
    for package in NEEDS.get(settings["name"], ()):
        pytest.importorskip(package)
    if settings["name"] in BABI:
        data_dir = request.getfixturevalue("babi_dir")
        settings = settings | {"data_dir": str(data_dir), "cache_dir": str(tmp_path_factory.mktemp("cache"))}
    return build_task(settings)


@pytest.mark.parametrize("check", TASK_CHECKS, ids=lambda check: check.__name__)
def test_contract(task, check):
    check(task, 4)


def test_the_metrics_of_every_supervised_task_have_an_accuracy(task):
    """Tables and figures of this repository show it; a user's task may leave it out."""
    if optional_member(task, "play") is not None:
        pytest.skip("a task that is played has a reward")
    batch = next(iter(task.evaluations("valid", 2)[""]()))
    logits = jnp.zeros((*batch.targets.shape[:2], task.output_features))
    assert "accuracy" in jax.eval_shape(task.metrics, logits, batch)


@dataclasses.dataclass(frozen=True)
class Last:
    """A task whose answer is the last of two symbols; `fault` names a fault to inject."""

    fault: str = ""
    name = "last"
    loader = None
    input_features = output_features = 2

    def encoder(self, rngs):
        return (lambda inputs: inputs[..., :1]) if self.fault == "encoder" else (lambda inputs: inputs)

    def sample(self, key, batch_size, step=None):
        if self.fault == "array step":
            step = None if step is None else step.astype(jnp.float32)
        if self.fault == "value of a step":
            key = jax.random.fold_in(key, 0 if step is None else int(step) // 100)
        if self.fault == "constant":
            key = jax.random.key(0)
        if self.fault == "another source":
            key = jax.random.key(np.random.randint(1 << 30))
        symbols = jax.random.randint(key, (4, batch_size), 0, 2)
        mask = jnp.ones(symbols.shape, bool).at[3, 0].set(False)
        asked = jnp.zeros(symbols.shape).at[2].set(1.0)
        if self.fault == "padding counts":
            asked = asked.at[3].set(1.0)
        if self.fault == "padding first":
            mask = mask[::-1]
        if self.fault == "integer mask":
            mask = mask.astype(jnp.int32)
        targets = symbols + 1 if self.fault == "targets" else symbols
        return Batch(inputs=jax.nn.one_hot(symbols, 2), targets=targets, loss_mask=asked, mask=mask)

    def evaluations(self, split, batch_size):
        seed = {"other sets": np.random.randint(1 << 30), "one set": 0}.get(self.fault, len(split))
        name = "trained" if self.fault == "no name" else ""
        return {name: lambda: [self.sample(jax.random.key(seed), batch_size)]}

    def loss(self, logits, batch):
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch.targets[..., None], -1)[..., 0]
        if self.fault == "bits":
            nats = nats / jnp.log(2.0)
        if self.fault == "product":
            return Mean(jnp.sum(nats * batch.loss_mask), jnp.sum(batch.loss_mask))
        if self.fault == "all steps":
            return Mean(jnp.sum(nats), jnp.float32(nats.size))
        return Mean(jnp.sum(jnp.where(batch.loss_mask > 0, nats, 0)), jnp.sum(batch.loss_mask))

    def metrics(self, logits, batch):
        if self.fault == "no accuracy":
            return {}
        right = jnp.argmax(logits, -1) == batch.targets
        if self.fault == "wrong is right":
            right = ~right
        count = jnp.float32(right.size) if self.fault == "count" else jnp.sum(batch.loss_mask)
        return {"accuracy": Mean(jnp.sum(jnp.where(right, batch.loss_mask, 0)), count)}

    def tokens(self, batch, index):
        tokens = [str(place) for place in np.argmax(batch.inputs[:, index], -1)]
        return tokens if self.fault == "padding shown" else tokens[: int(batch.mask[:, index].sum())]

    def render(self, batch, index):
        line = " ".join(self.tokens(batch, index))
        if self.fault == "hidden":
            return line[:-1] + "?\n= 0"
        return line if self.fault == "no answer" else f"{line}\n= {batch.targets[2, index]}"


@pytest.mark.parametrize("fault", ["", "no accuracy"])  # training needs no metric
def test_a_task_without_a_fault_passes(fault):
    check_task(Last(fault))


class Files(Last):
    """Reads the batches of `Last`, with a loader that has a fault."""

    sample = None

    def loader(self, seed, batch_size, part=(0, 1)):
        return Positioned(seed, batch_size, self.fault)


class Positioned:
    def __init__(self, seed, batch_size, fault):
        self.seed, self.batch_size, self.fault, self.position = seed, batch_size, fault, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 1
        return jax.device_get(Last().sample(jax.random.key(1000 * self.seed + self.position), self.batch_size))

    def get_state(self):
        return {"position": np.int64(self.position) if self.fault == "numpy" else self.position}

    def set_state(self, state):
        if self.fault != "no position":
            self.position = state["position"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [("no position", "a loader must continue from a state that is set"), ("numpy", "must return values of JSON")],
)
def test_a_loader_that_does_not_resume_is_found(fault, message):
    loaders_resume(Files("none"), 4)
    with pytest.raises(AssertionError, match=f"^task last: .*{message}"):
        check_task(Files(fault))


class Streams(Files):
    """Its batches are windows of streams."""

    carries = True

    def loader(self, seed, batch_size, part=(0, 1)):
        return Positioned(seed, batch_size // 2 if self.fault == "few streams" else batch_size, self.fault)

    def evaluations(self, split, batch_size):
        return Last().evaluations(split, batch_size)


def test_the_number_of_streams_in_training_is_the_batch_size():
    batches_fit_model_and_loss(Streams("none"), 4)
    with pytest.raises(AssertionError, match="B must be the number of streams in training, 4, got 2"):
        batches_fit_model_and_loss(Streams("few streams"), 4)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("constant", "two batches of one run must differ"),
        ("another source", "equal seeds must give equal batches"),
        ("array step", "sample must accept a step of type int, got AttributeError"),
        ("value of a step", "sample must accept a traced step, got ConcretizationTypeError"),
        ("padding counts", "padding must not count"),
        ("padding first", "padding must come last"),
        ("integer mask", "loss_mask must be float32 and mask bool"),
        ("targets", "targets must be in 0..1"),
        ("encoder", "encoder must return shape"),
        ("no name", "must have the trained setting"),
        ("other sets", "must have the same bytes on every call"),
        ("one set", "validation and test must differ"),
        ("bits", "equal logits must have loss 0.69"),
        ("product", "use jnp.where, not a product"),
        ("all steps", "must count the steps of loss_mask"),
        ("wrong is right", "logits of the targets must have accuracy 1"),
        ("count", "logits of the targets must have accuracy 1"),
        ("padding shown", "tokens must have one text per step, 3, got 4"),
        ("hidden", "render must show the tokens in order"),
        ("no answer", "render must show the answers after the last token"),
    ],
)
def test_a_fault_is_found_and_named(fault, message):
    with pytest.raises(AssertionError, match=f"^task last: .*{message}"):
        check_task(Last(fault))
