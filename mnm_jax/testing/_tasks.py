"""The contract of a task: the rules on which training relies, with one function per rule.

Shape letters: `T` time steps, `B` examples, `D` input features, `C` outputs.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax.training import Batch, Task, optional_member

_SPLITS = ("valid", "test")


def check_task(task: Task, batch_size: int = 4) -> None:
    """Checks that a task satisfies the contract of `mnm_jax.training.Task`.

    Batches are drawn or read, encoded, scored and rendered as in training, with artificial logits. A task with `play`
    is played by an agent that acts at random.

    Args:
      task: the task, with small sizes; hashable, as a frozen dataclass is.
      batch_size: number of examples per batch, `B`; for a task whose batches count questions, of questions.

    Raises:
      AssertionError: if the task breaks a rule; the message names the rule.

    Examples:
      See "Add a task" in `docs/extend.md`.
    """
    for check in TASK_CHECKS:
        check(task, batch_size)


def batches_have_one_source(task: Any, batch_size: int) -> None:
    """Checks that a task has either `sample` or `loader`."""
    del batch_size
    _require((task.sample is None) != (task.loader is None), task, "exactly one of sample and loader must be None")


def equal_seeds_give_equal_bytes(task: Any, batch_size: int) -> None:
    """Checks that batches depend on the seed and on nothing else."""
    first, other = (_training_batches(task, seed, 2, batch_size) for seed in (3, 4))
    # Traced again: a number that `sample` takes from elsewhere is a constant of a compiled program.
    traced = jax.jit(lambda task, key, batch_size: task.sample(key, batch_size), static_argnums=(0, 2))
    again = _training_batches(task, 3, 2, batch_size, traced)
    _require(_same(first, again), task, "equal seeds must give equal batches: draw everything from the key")
    _require(not _same(first[0], first[1]), task, "two batches of one run must differ")
    _require(not _same(first[0], other[0]), task, "other seeds must give other batches")


def loaders_resume(task: Any, batch_size: int) -> None:
    """Checks that a loader continues from the state of another one, which JSON can hold, as a resumed run does."""
    if task.sample is not None:
        return
    first, other = (task.loader(3, batch_size) for _ in range(2))
    for _ in range(2):
        next(first)
    try:
        state = json.loads(json.dumps(first.get_state()))
    except TypeError as error:
        raise AssertionError(f"task {task.name}: a loader's get_state must return values of JSON, {error}.") from error
    other.set_state(state)
    expected = [next(first) for _ in range(2)]
    _require(
        _same(expected, [next(other) for _ in range(2)]),
        task,
        "a loader must continue from a state that is set: get_state and set_state must hold its whole position",
    )


def steps_may_be_integers(task: Any, batch_size: int) -> None:
    """Checks that `sample` accepts the number of updates as an int and as a traced array, and without it."""
    if task.sample is None:
        return
    key = jax.random.key(0)
    drawn = [jax.eval_shape(lambda key: task.sample(key, batch_size), key)]
    sample = lambda key, step: task.sample(key, batch_size, step)  # noqa: E731
    of_int = lambda key, step: sample(key, 7)  # noqa: E731
    # Training traces the step, so that an `int` or an `if` of it fails there.
    for kind, draw in {"a step of type int": of_int, "a traced step": sample}.items():
        try:
            drawn.append(jax.eval_shape(draw, key, jnp.int32(7)))
        except (AttributeError, TypeError) as error:
            _require(False, task, f"sample must accept {kind}, got {error!r}")
    _require(drawn[0] == drawn[1] == drawn[2], task, "sample must return the same shapes for every step")


def batches_fit_model_and_loss(task: Any, batch_size: int) -> None:
    """Checks shapes, dtypes and masks of training and evaluation batches, and that the encoder accepts them."""
    encoder = task.encoder(nnx.Rngs(0))
    seen: set[int] = set()
    if optional_member(task, "carries"):
        (batch,) = _training_batches(task, 0, 1, batch_size)
        streams = batch.mask.shape[1]
        _require(
            streams == batch_size, task, f"B must be the number of streams in training, {batch_size}, got {streams}"
        )
    for batch in _every_batch(task, batch_size):
        shape = batch.inputs.shape[:2]
        # A task that reads files may count questions, of which an example has several.
        _require(task.sample is None or shape[1] == batch_size, task, f"B must be {batch_size}, got {shape[1]}")
        for leaf in jax.tree.leaves(batch):
            _require(leaf.shape[:2] == shape, task, f"every array must be [T, B, ...] = {shape}, got {leaf.shape}")
        dtypes = (batch.loss_mask.dtype, batch.mask.dtype)
        _require(dtypes == (np.float32, np.bool_), task, f"loss_mask must be float32 and mask bool, got {dtypes}")
        counts = batch.loss_mask > 0
        _require(set(np.unique(batch.loss_mask)) <= {0, 1}, task, "loss_mask must be 0 or 1")
        _require(counts.any(), task, "loss_mask must be 1 at some step of a batch")
        _require(not np.any(counts & ~batch.mask), task, "padding must not count: loss_mask 1 where mask is False")
        _require(np.all(np.sort(batch.mask, 0)[::-1] == batch.mask), task, "padding must come last")
        for name, flag in batch.flags.items():
            _require(flag.dtype == np.bool_, task, f"{name} must be bool, got {flag.dtype}")
            _require(not np.any(flag & ~batch.mask), task, f"{name} must be False where mask is False")
        features = jax.eval_shape(encoder, jnp.asarray(batch.inputs))
        expected = (*shape, task.input_features), jnp.dtype(jnp.float32)
        found = features.shape, features.dtype
        _require(found == expected, task, f"encoder must return shape and dtype {expected}, got {found}")
        if not _is_played(task):
            seen |= _check_targets(task, batch, counts)
    _require(_is_played(task) or len(seen) > 1, task, "targets must take more than one value")


def _check_targets(task: Any, batch: Batch, counts: np.ndarray) -> set[int]:
    """Checks targets of classes or bits; returns the values that count."""
    targets = batch.targets
    if _asks_for_bits(batch):
        _require(targets.shape[2] == task.output_features, task, "targets [T, B, C] must have C = output_features bits")
        _require(targets.dtype == np.float32, task, f"targets of bits must be float32, got {targets.dtype}")
    else:
        _require(np.issubdtype(targets.dtype, np.integer), task, f"targets must be integers, got {targets.dtype}")
    classes = 2 if _asks_for_bits(batch) else task.output_features
    seen = set(np.unique(targets[counts]).tolist())
    _require(seen <= set(range(classes)), task, f"targets must be in 0..{classes - 1}, got {sorted(seen)}")
    return seen


def targets_score_full_marks(task: Any, batch_size: int) -> None:
    """Checks that logits of the targets have no loss, and the accuracy, if there is one, 1; the opposite logits 0."""
    if _is_played(task):
        return
    for batch in _every_batch(task, batch_size):
        classes = np.arange(task.output_features)
        bits = batch.targets if _asks_for_bits(batch) else batch.targets[..., None] == classes
        logits = np.float32(1e4) * (2 * bits.astype(np.float32) - 1)
        loss, metrics = _score(task, logits, batch)
        _require(float(loss.value) < 1e-6, task, f"logits of the targets must have loss 0, got {loss.value}")
        counted = batch.loss_mask.sum()
        _require(loss.count == counted, task, "loss must count the steps of loss_mask")
        lost, others = _score(task, -logits, batch)
        _require(float(lost.value) > 1, task, f"logits of every other class must have a large loss, got {lost.value}")
        if (accuracy := metrics.get("accuracy")) is None:
            continue
        _require(float(accuracy.value) == 1, task, f"logits of the targets must have accuracy 1, got {accuracy.value}")
        some = accuracy.count <= counted  # accuracy may count fewer steps, such as only the answers in a text
        _require(some, task, f"accuracy must count steps of loss_mask, {counted} at most, got {accuracy.count}")
        wrong = others["accuracy"].value
        _require(float(wrong) == 0, task, f"logits of every other class must have accuracy 0, got {wrong}")


def equal_logits_lose_log_classes(task: Any, batch_size: int) -> None:
    """Checks that the loss is in nats: log C for equal logits of C classes, log 2 for a bit."""
    if _is_played(task):
        return
    (batch,) = _training_batches(task, 0, 1, batch_size)
    loss = float(_score(task, np.zeros((*batch.mask.shape, task.output_features), np.float32), batch)[0].value)
    expected = math.log(2 if _asks_for_bits(batch) else task.output_features)
    _require(math.isclose(loss, expected, rel_tol=1e-5), task, f"equal logits must have loss {expected}, got {loss}")


def uncounted_steps_change_no_number(task: Any, batch_size: int) -> None:
    """Checks that logits and targets where `loss_mask` is 0 reach neither loss nor metrics, not even as NaN."""
    (batch,) = _training_batches(task, 0, 1, batch_size)
    logits, counts = _random_logits(task, batch), batch.loss_mask > 0
    targets = jax.tree.map(lambda x: np.where(_align(counts, x), x, np.zeros_like(x)), batch.targets)
    expected = _numbers(task, logits, batch)
    for value in (0.0, -1e6, math.inf, math.nan):
        found = _numbers(task, np.where(counts[..., None], logits, np.float32(value)), batch._replace(targets=targets))
        _require(
            all(map(np.array_equal, found, expected)),
            task,
            f"logits of {value} where loss_mask is 0 must not change loss and metrics; use jnp.where, not a product",
        )


def padding_changes_no_number(task: Any, batch_size: int) -> None:
    """Checks that three more steps and two more examples of padding change neither loss nor metrics."""
    (batch,) = _training_batches(task, 0, 1, batch_size)
    logits = _random_logits(task, batch)
    steps, examples = batch.mask.shape
    padded = jax.tree.map(lambda x: np.pad(x, [(0, 3), (0, 2)] + [(0, 0)] * (x.ndim - 2)), batch)
    more = _random_logits(task, padded, seed=1)
    more[:steps, :examples] = logits
    found, expected = _numbers(task, more, padded), _numbers(task, logits, batch)
    _require(np.allclose(found, expected, rtol=1e-6, atol=0), task, "padding must not change loss and metrics")


def only_counted_steps_have_a_gradient(task: Any, batch_size: int) -> None:
    """Checks that the gradient of the loss is zero exactly where `loss_mask` is 0."""
    (batch,) = _training_batches(task, 0, 1, batch_size)
    gradient = jax.jit(jax.grad(lambda logits: task.loss(logits, batch).total))(_random_logits(task, batch))
    nonzero = np.any(np.asarray(gradient) != 0, axis=-1)
    _require(np.array_equal(nonzero, batch.loss_mask > 0), task, "the loss must depend on the steps of loss_mask alone")


def evaluations_repeat(task: Any, batch_size: int) -> None:
    """Checks that the evaluation sets include "", have the same names and bytes on every call, and differ by split."""
    whole = []
    for split in _SPLITS:
        first, again = (task.evaluations(split, batch_size) for _ in range(2))
        _require("" in first, task, f'evaluations("{split}") must have the trained setting, named ""')
        _require(list(first) == list(again), task, f'evaluations("{split}") must have the same names on every call')
        for name in first:
            drawn = [jax.device_get(list(source())) for source in (first[name], first[name], again[name])]
            repeats = _same(drawn[0], drawn[1]) and _same(drawn[0], drawn[2])
            _require(repeats, task, f"the set {name!r} of {split!r} must have the same bytes on every call")
            whole += [drawn[0]] if name == "" else []
    structures: list[Any] = [jax.tree.structure(batches) for batches in whole]
    differ = structures[0] != structures[1] or not _same(*whole)
    _require(differ, task, "validation and test must differ: a model chosen by one is measured on the other")


def pictures_show_every_step(task: Any, batch_size: int) -> None:
    """Checks that `tokens` has one text per unmasked step, and that `render` shows them in order, then the answers."""
    (batch,) = _training_batches(task, 0, 1, batch_size)
    for index in range(batch.mask.shape[1]):
        picture, tokens = task.render(batch, index), task.tokens(batch, index)
        steps = int(batch.mask[:, index].sum())
        _require(len(tokens) == steps, task, f"tokens must have one text per step, {steps}, got {len(tokens)}")
        place = 0
        for token in tokens:
            found = picture.find(token, place)
            _require(found >= 0, task, f"render must show the tokens in order; {token!r} is missing in\n{picture}")
            place = found + len(token)
        answered = _is_played(task) or picture[place:].strip()
        _require(answered, task, f"render must show the answers after the last token, got\n{picture}")


TASK_CHECKS: tuple[Callable[[Any, int], None], ...] = (
    batches_have_one_source,
    equal_seeds_give_equal_bytes,
    loaders_resume,
    steps_may_be_integers,
    batches_fit_model_and_loss,
    targets_score_full_marks,
    equal_logits_lose_log_classes,
    uncounted_steps_change_no_number,
    padding_changes_no_number,
    only_counted_steps_have_a_gradient,
    evaluations_repeat,
    pictures_show_every_step,
)


class _RandomAgent:
    """An agent with equal logits, for tasks with `play`."""

    def __init__(self, outputs: int):
        self._outputs = outputs

    def start(self, batch_size: int) -> tuple[()]:
        del batch_size
        return ()

    def step(self, carry: tuple[()], observations: jax.Array) -> tuple[tuple[()], jax.Array]:
        return carry, jnp.zeros((len(observations), self._outputs))


def _require(condition: Any, task: Any, message: str) -> None:
    if not condition:
        raise AssertionError(f"task {task.name}: {message}.")


def _is_played(task: Any) -> bool:
    return optional_member(task, "play") is not None


def _asks_for_bits(batch: Batch) -> bool:
    return batch.targets.ndim == 3


def _play(task: Any, batch: Batch) -> Batch:
    """Returns the batch as NumPy arrays, played by a random agent if the task has `play`."""
    return jax.device_get(_play_at_random(task, batch) if _is_played(task) else batch)


# Programs of equal tasks are compiled once for all checks, which takes longer than everything else in them.
@partial(jax.jit, static_argnums=(0, 2))
def _draw(task: Any, key: jax.Array, batch_size: int) -> Batch:
    return task.sample(key, batch_size)


@partial(jax.jit, static_argnums=0)
def _play_at_random(task: Any, batch: Batch) -> Batch:
    return task.play(_RandomAgent(task.output_features), batch)


@partial(jax.jit, static_argnums=0)
def _score(task: Any, logits: np.ndarray, batch: Batch) -> tuple[Any, dict[str, Any]]:
    """Returns the loss and the metrics of a batch."""
    return task.loss(logits, batch), dict(task.metrics(logits, batch))


def _training_batches(task: Any, seed: int, count: int, batch_size: int, draw: Callable = _draw) -> list[Batch]:
    """Returns the first batches of a training run."""
    if task.sample is None:
        return list(itertools.islice(task.loader(seed, batch_size), count))
    keys = jax.random.split(jax.random.key(seed), count)
    return [_play(task, draw(task, key, batch_size)) for key in keys]


def _every_batch(task: Any, batch_size: int) -> Iterator[Batch]:
    """Returns a training batch, and the first and the last of every evaluation set."""
    yield from _training_batches(task, 0, 1, batch_size)
    for split in _SPLITS:
        for source in task.evaluations(split, batch_size).values():
            drawn = list(source())
            yield from (_play(task, drawn[0]), _play(task, drawn[-1]))


def _random_logits(task: Any, batch: Batch, seed: int = 0) -> np.ndarray:
    shape = (*batch.mask.shape, task.output_features)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _numbers(task: Any, logits: np.ndarray, batch: Batch) -> list[np.ndarray]:
    """Returns totals and counts of the loss and of every metric."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(_score(task, logits, batch))]


def _align(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns a mask `[T, B]` with axes of size 1 for the other axes of values `[T, B, ...]`."""
    return mask.reshape(mask.shape + (1,) * (values.ndim - 2))


def _same(a: Any, b: Any) -> bool:
    """Returns whether two trees of arrays have equal bytes and dtypes."""
    return jax.tree.all(jax.tree.map(lambda x, y: x.tobytes() == y.tobytes() and x.dtype == y.dtype, a, b))
