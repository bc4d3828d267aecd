"""Tests that several devices give the numbers of one, with SGD, since Adam would hide a gradient of the wrong scale."""

import types

import jax
import numpy as np
import pytest

from mnm_jax import value_and_grad
from mnm_jax.training import _parallel as parallel
from mnm_jax.training import init_state, make_optimizer, make_parallel_update, make_placement, split_model
from mnm_jax.training._parallel import pad_batch, state_shardings


def run(tiny, draw, form, count, steps=3, batch_size=16, accumulate=1, make_model=None, rate=0.5):
    """Returns the parameters and metrics of a run. draw: `(seed, size) -> batch` to read; None: batches are sampled."""
    make_model = make_model or tiny.Model
    optimizer = make_optimizer(name="sgd", learning_rate=rate, steps=steps)
    devices = jax.local_devices()[:count]
    state = init_state(make_model, optimizer, 0, 2)
    step = make_parallel_update(
        split_model(make_model),
        tiny.Recall(reads=draw is not None),
        optimizer,
        meta_weight=0.5,
        batch_size=batch_size,
        accumulate=accumulate,
        devices=devices,
        parallel=form,
        state=state,
    )
    state = jax.device_put(state, state_shardings(state, make_placement(devices), form))
    metrics = []
    for i in range(steps):
        state, now = step(state, draw and draw(i, 16))
        metrics.append(jax.device_get(now))
    return jax.device_get(state.params), metrics


@pytest.mark.parametrize(
    ("draw", "every"),
    [("draw_forks", False)]
    + [pytest.param(draw, True, marks=pytest.mark.slow) for draw in (None, "draw_numpy", "draw_forks")],
)
def test_every_form_equals_one_device(tiny, x64, draw, every):
    draw = draw and getattr(tiny, draw)
    expected = run(tiny, draw, "jit", 1)
    counts = np.sum(tiny.draw_numpy(0, 16).loss_mask.reshape(5, 8, 2), axis=(0, 2))
    assert len(set(counts)) > 1  # devices count unequal numbers of steps
    few = [("jit", 8, 1), ("fsdp", 2, 4), ("pmap", 4, 2)]
    more = [("pmap", 8, 1), ("fsdp", 8, 1), ("jit", 1, 2)]
    for form, count, parts in few + more * every:
        found = run(tiny, draw, form, count, accumulate=parts)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), found, expected)


def noisy(tiny):
    """Returns a model that multiplies its results by the last bit of the seed of each example."""

    class Noisy(tiny.Model):
        dropout = 0.5

        def __call__(self, inputs, *, mask, noise=None):
            output = super().__call__(inputs, mask=mask)
            scale = lambda x, bit: x * bit.reshape(1, -1, *[1] * (x.ndim - 2)).astype(x.dtype)  # noqa: E731
            return output._replace(logits=scale(output.logits, noise % 2), meta_loss=scale(output.meta_loss, noise % 2))

    return Noisy


def test_dropout_is_drawn_per_example_and_update_whatever_the_devices(tiny, x64):
    draw = lambda seed, size: tiny.draw_numpy(0, size)  # noqa: E731
    (_, expected), (_, found) = (
        run(tiny, draw, form, count, steps=2, accumulate=count, make_model=noisy(tiny), rate=1e-9)
        for form, count in (("jit", 1), ("pmap", 2))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), found, expected)
    first, second = (each.meta_loss for each in found)
    assert np.all(np.abs(first - second) > 1e-6)


def test_dropout_does_not_depend_on_the_padding_between_the_parts_of_two_processes(tiny, x64):
    def part(start, stop):
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:, start:stop], tiny.draw_numpy(0, 16))

    def joined(*_):
        return jax.tree.map(lambda *parts: np.concatenate(parts, 1), *(pad_batch(part(i, i + 5), 8) for i in (0, 5)))

    (_, expected), (_, found) = (
        run(tiny, draw, "jit", count, steps=1, make_model=noisy(tiny))
        for draw, count in ((lambda *_: part(0, 10), 1), (joined, 8))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), found, expected)


@pytest.mark.parametrize("processes, order", [(1, [3, 1, 2]), (2, [1, 2, 3])])
def test_with_several_processes_a_batch_is_divided_in_their_order(monkeypatch, processes, order):
    """TPUs are given to `jax.make_mesh` in an order of its own; here it keeps that of its argument."""
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    devices = jax.local_devices()
    placement = make_placement([devices[i] for i in (3, 1, 2)])
    for sharding in placement:
        assert [device.id for device in sharding.mesh.devices] == [devices[i].id for i in order]


def test_fsdp_without_a_state_is_refused(tiny):
    optimizer = make_optimizer(learning_rate=0.1, steps=1)
    settings = {"meta_weight": 0.0, "batch_size": 8, "devices": jax.devices(), "parallel": "fsdp"}
    with pytest.raises(ValueError, match="parallel='fsdp' divides the state.*pass state="):
        make_parallel_update(split_model(tiny.Model), tiny.Recall(), optimizer, **settings)


@pytest.mark.parametrize("form, count", [("jit", 8), ("pmap", 2)])
def test_seeds_mapped_as_on_an_accelerator(tiny, x64, monkeypatch, form, count):
    """A CPU runs seeds in sequence; here they are mapped as on an accelerator."""
    expected = run(tiny, None, "jit", 1)
    map_seeds = parallel.map_seeds
    accelerator = [types.SimpleNamespace(platform="gpu")]
    monkeypatch.setattr(parallel, "map_seeds", lambda function, devices: map_seeds(function, accelerator))
    found = run(tiny, None, form, count)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), found, expected)


@pytest.mark.parametrize(
    "form, count, examples, micro_batch", [("jit", 1, 40, 8), ("jit", 1, 37, 8), ("jit", 8, 40, 8), ("pmap", 8, 40, 1)]
)
def test_a_batch_that_is_read_may_have_another_size(tiny, x64, monkeypatch, form, count, examples, micro_batch):
    """A loader chooses the batch size: the micro-batches of a device follow it."""
    expected = run(tiny, tiny.draw_forks, "jit", 1, batch_size=examples)
    sizes = []
    update = "mnm_jax.training._update"
    monkeypatch.setattr(f"{update}.choose_micro_batch", lambda cell, platform: 8 // count)
    record = lambda loss, **settings: sizes.append(settings["micro_batch"]) or value_and_grad(loss, **settings)  # noqa: E731
    monkeypatch.setattr(f"{update}.value_and_grad", record)
    found = run(tiny, tiny.draw_forks, form, count, batch_size=examples)
    assert set(sizes) == {micro_batch}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), found, expected)


@pytest.mark.parametrize("form", ["jit", "pmap"])
def test_a_batch_that_is_read_and_cannot_be_divided_is_padded_and_trains_the_same(tiny, x64, form):
    def draw(seed, size):
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:, :13], tiny.draw_forks(seed, size))

    assert draw(0, 16).mask.shape[1] == 13
    assert pad_batch(draw(0, 16), 8).mask.shape[1] == 16
    expected = run(tiny, draw, "jit", 1)
    found = run(tiny, lambda seed, size: pad_batch(draw(seed, size), 8), form, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), found, expected)


def test_fsdp_keeps_a_part_of_each_large_leaf_on_each_device(tiny):
    devices = jax.local_devices()
    placement, optimizer = make_placement(devices), make_optimizer(learning_rate=0.1, steps=3)
    state = init_state(tiny.Model, optimizer, 0, 2)
    options = {"meta_weight": 0.5, "batch_size": 16, "devices": devices, "parallel": "fsdp", "state": state}
    step = make_parallel_update(split_model(tiny.Model), tiny.Recall(), optimizer, **options)
    state, _ = step(jax.device_put(state, state_shardings(state, placement, "fsdp")), None)
    shapes = {leaf.shape: leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(state)}
    # [S, ...]: the axis of eight units is divided, wherever it is; eight does not divide the others.
    assert shapes == {(2, 4, 8): (2, 4, 1), (2, 8, 8): (2, 1, 8), (2, 8, 3): (2, 1, 3), (2,): (2,)}


def test_accumulation_that_does_not_divide_is_refused_in_one_line(tiny):
    with pytest.raises(ValueError, match="accumulate must divide the 2 examples of a device, got accumulate=4"):
        run(tiny, None, "jit", 8, accumulate=4)


@pytest.mark.parametrize("reads", [True, False])
def test_each_device_computes_its_part_alone(tiny, reads):
    def flops(count):
        optimizer = make_optimizer(name="sgd", learning_rate=0.1, steps=1)
        settings = {"meta_weight": 0.5, "batch_size": 64, "devices": jax.local_devices()[:count]}
        step = make_parallel_update(split_model(tiny.Model), tiny.Recall(reads=reads), optimizer, **settings)
        state = jax.eval_shape(lambda: init_state(tiny.Model, optimizer, 0, 1))
        batch = tiny.draw_numpy(0, 64) if reads else None
        return step.lower(state, batch).compile().cost_analysis()["flops"]

    assert flops(8) < flops(1) / 3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 12}, "batch_size must be a multiple of the 8 devices, got batch_size=12."),
        ({"parallel": "tmap"}, "parallel must be one of 'jit', 'pmap', 'fsdp', got 'tmap'."),
        ({"batch_size": 16.0}, "batch_size must be an integer >= 1, got 16.0 of type float: pass an int."),
        ({"accumulate": 0}, "accumulate must be >= 1, got 0."),
        ({"meta_weight": float("nan")}, "meta_weight must be finite, got nan."),
    ],
)
def test_what_cannot_be_divided_is_refused_in_one_line(tiny, changes, message):
    optimizer = make_optimizer(learning_rate=0.1, steps=1)
    settings = {"meta_weight": 0.0, "batch_size": 16, "devices": jax.local_devices()} | changes
    with pytest.raises((ValueError, TypeError)) as caught:
        make_parallel_update(split_model(tiny.Model), tiny.Recall(), optimizer, **settings)
    assert str(caught.value) == message
