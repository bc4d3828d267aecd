"""Tests tasks with `carries`: the model's carry is passed from batch to batch in every way to train and to evaluate."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnm_jax import LSTMCell, MNMCell, local_memory
from mnm_jax.cells import split_output
from mnm_jax.training import (
    Batch,
    Interrupted,
    Mean,
    SequenceModel,
    TrainConfig,
    evaluate,
    init_state,
    make_optimizer,
    make_parallel_update,
    make_placement,
    make_update,
    read_metrics,
    restore_checkpoint,
    save_checkpoint,
    split_model,
    train,
)
from mnm_jax.training._parallel import state_shardings

T, B, D, C = 3, 8, 2, 3


def make_model(rngs):
    return SequenceModel(lambda x: x, LSTMCell(D, 3, rngs=rngs), C, rngs=rngs)


def make_memory_model(rngs):
    return SequenceModel(lambda x: x, MNMCell(D, 3, local_memory(2, 2, hidden_sizes=()), rngs=rngs), C, rngs=rngs)


def window(position, streams=B, steps=T):
    """Returns a window of endless streams; the numbers of each step depend on its place and its stream alone."""
    place = position * steps + np.arange(steps)[:, None]
    column = np.arange(streams)
    inputs = np.stack([np.sin(place + column), np.cos(1.7 * place * (column + 1))], -1).astype(np.float32)
    targets = ((3 * place + column * column) % C).astype(np.int32)
    shape = (steps, streams)
    return Batch(inputs, targets, ((place + column) % 2).astype(np.float32), np.ones(shape, bool))


class Windows:
    def __init__(self, streams, before):
        self.streams, self.before, self.position = streams, before, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.before(self.position)
        self.position += 1
        return window(self.position - 1, self.streams)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


@dataclasses.dataclass(frozen=True)
class Streams:
    """Endless streams of numbers; the evaluation streams are as long as five windows."""

    before: object = lambda position: None
    steps: int = T
    name = "streams"
    sample = None
    carries = True
    input_features = D
    output_features = C

    def loader(self, seed, batch_size):
        return Windows(batch_size, self.before)

    def evaluations(self, split, batch_size):
        count = 5 * T // self.steps
        return {"": lambda: (window(i, 2, self.steps) for i in range(count)), "one": lambda: [window(0, 3)]}

    def loss(self, logits, batch):
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return Mean(jnp.sum(nats * batch.loss_mask), jnp.sum(batch.loss_mask))

    def metrics(self, logits, batch):
        return {}


def updates(devices=1, parallel="jit", accumulate=1, count=3, make_model=make_model):
    """Returns the state and the metrics after some updates of two seeds."""
    optimizer = make_optimizer(name="sgd", learning_rate=0.5, steps=count)
    devices = jax.local_devices()[:devices]
    state = init_state(make_model, optimizer, 0, 2, B)
    update = make_parallel_update(
        split_model(make_model),
        Streams(),
        optimizer,
        meta_weight=0.3,
        batch_size=B,
        accumulate=accumulate,
        devices=devices,
        parallel=parallel,
        state=state,
    )
    state = jax.device_put(state, state_shardings(state, make_placement(devices), parallel))
    metrics = []
    for position in range(count):
        state, now = update(state, window(position))
        metrics.append(jax.device_get(now))
    return jax.device_get((state.params, state.carry)), metrics


def by_hand(state, graphdef, count=3):
    """Trains one seed step by step: each window is one call of the cell per step, from a carry that is a constant."""
    task = Streams()
    params, carry, losses = state.params, state.carry, []

    def objective(params, carry, batch):
        model = nnx.merge(graphdef, params)
        logits, meta = [], []
        for inputs in batch.inputs:
            carry, output = model.cell(carry, jnp.asarray(inputs))
            features, meta_loss = split_output(output)
            logits.append(model.head(features))
            meta.append(jnp.zeros(()) if meta_loss is None else jnp.mean(meta_loss))
        return task.loss(jnp.stack(logits), batch).value + 0.3 * jnp.mean(jnp.stack(meta)), carry

    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    for position in range(count):
        (loss, carry), grads = step(params, carry, window(position))
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
        losses.append(loss)
    return params, carry, losses


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, expected)


@pytest.fixture(scope="module")
def trained():
    """Returns state and metrics of three updates on one device."""
    return updates()


@pytest.mark.parametrize("make_model", [make_model, pytest.param(make_memory_model, marks=pytest.mark.slow)])
def test_training_equals_a_loop_whose_gradient_ends_at_the_border_of_a_window(trained, make_model):
    if make_model is make_memory_model:
        trained = updates(make_model=make_model)
    state = jax.tree.map(lambda leaf: leaf[0], init_state(make_model, optax.identity(), 0, 2, B))
    params, carry, losses = by_hand(state, split_model(make_model))
    close(jax.tree.map(lambda leaf: leaf[0], trained[0]), (params, carry))
    np.testing.assert_allclose([now.loss[0] for now in trained[1]], losses, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), carry, state.carry)
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_accumulation_that_does_not_divide_the_streams_is_refused(tmp_path):
    config = TrainConfig(steps=1, batch_size=6, accumulate=4, learning_rate=0.1)
    with pytest.raises(ValueError, match="accumulate must divide the 6 examples of a device, got accumulate=4"):
        train(Streams(), make_model, config, tmp_path, devices=jax.devices()[:1])


@pytest.mark.parametrize(
    ("devices", "parallel", "accumulate"),
    [
        (2, "jit", 2),
        (2, "pmap", 1),
        pytest.param(1, "jit", 4, marks=pytest.mark.slow),
        pytest.param(8, "jit", 1, marks=pytest.mark.slow),
        pytest.param(4, "pmap", 2, marks=pytest.mark.slow),
        pytest.param(8, "fsdp", 1, marks=pytest.mark.slow),
    ],
)
def test_micro_batches_and_devices_keep_each_stream_with_its_carry(trained, devices, parallel, accumulate):
    close(updates(devices, parallel, accumulate), trained)


@pytest.mark.slow  # a fast test of the same: tests/tasks/test_babi_stream.py
def test_an_evaluation_carries_over_its_windows_and_each_set_begins_anew():
    graphdef, params = split_model(make_model), init_state(make_model, optax.identity(), 0, 2).params
    found = evaluate(graphdef, params, Streams(), "valid", 4, devices=jax.local_devices()[:1])
    whole = evaluate(graphdef, params, Streams(steps=5 * T), "valid", 4, devices=jax.local_devices()[:1])
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)
    model = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[1], params))
    batch = window(0, 2, 5 * T)
    expected = Streams().loss(jax.jit(lambda x: model(x).logits)(jnp.asarray(batch.inputs)), batch)
    np.testing.assert_allclose(found["valid/loss"][1], expected.value, rtol=1e-6)


def test_a_checkpoint_holds_the_carry(tmp_path):
    state = init_state(make_model, optax.sgd(0.1), 0, 2, B)
    state = state._replace(
        carry=jax.tree.map(lambda leaf: leaf + jnp.arange(3, dtype=leaf.dtype)[None, None], state.carry)
    )
    save_checkpoint(tmp_path, 3, state, {})
    found = restore_checkpoint(tmp_path, jax.eval_shape(lambda: state)).state
    jax.tree.map(np.testing.assert_array_equal, found.carry, jax.device_get(state.carry))
    with pytest.raises(ValueError, match=r"another model or number of seeds: carry\[0\] is float32\[2, 8, 3\] there"):
        restore_checkpoint(tmp_path, jax.eval_shape(lambda: init_state(make_model, optax.sgd(0.1), 0, 2, 4)))


@pytest.mark.slow
def test_a_run_that_is_interrupted_and_resumed_ends_with_the_same_numbers(tmp_path):
    config = TrainConfig(steps=5, batch_size=B, learning_rate=0.1, log_every=1, eval_every=3)
    one = jax.local_devices()[:1]
    expected = train(Streams(), make_model, config, tmp_path / "whole", devices=one)
    stops = [2]

    def stop(position):
        if [position] == stops:
            stops.pop()
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="at update 3 of 5"):
        train(Streams(stop), make_model, config, tmp_path / "cut", devices=one)
    found = train(Streams(stop), make_model, config, tmp_path / "cut", devices=one)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    strip = lambda path: [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(path)]  # noqa: E731
    assert strip(tmp_path / "cut") == strip(tmp_path / "whole")


def test_a_carry_that_is_not_finite_stops_the_seed_before_the_update():
    state = init_state(make_model, optax.sgd(0.1), 0, 1, 2)
    update = make_update(split_model(make_model), Streams(), optax.sgd(0.1), meta_weight=0.0, batch_size=2)
    batch = window(0, 2)._replace(loss_mask=np.zeros((T, 2), np.float32))
    inputs = batch.inputs.copy()
    inputs[-1, 1] = np.inf
    one = jax.tree.map(lambda leaf: leaf[0], state)
    after, _ = jax.jit(update)(one, batch._replace(inputs=inputs))
    assert after.fault_step == 1 and after.step == 0
    jax.tree.map(np.testing.assert_array_equal, after.carry, one.carry)


def test_what_cannot_carry_is_refused(tmp_path):
    class Played(Streams):
        play = staticmethod(lambda model, batch: batch)

    config = TrainConfig(steps=1, batch_size=B, learning_rate=0.1)
    with pytest.raises(ValueError, match="task streams cannot have both carries and play"):
        train(Played(), make_model, config, tmp_path)
    state = jax.tree.map(lambda leaf: leaf[0], init_state(make_model, optax.sgd(0.1), 0, 1, 4))
    update = make_update(split_model(make_model), Streams(), optax.sgd(0.1), meta_weight=0.0, batch_size=4)
    with pytest.raises(ValueError, match=r"same number of examples, got batch\[0\].inputs: 8, .* batch\[2\]\[0\]: 4"):
        jax.eval_shape(update, state, window(0))
