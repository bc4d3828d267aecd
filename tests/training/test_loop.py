"""Tests the training loop: its record, resuming after signals and crashes, and faults."""

import contextlib
import os
import signal
import threading
import types

import jax
import numpy as np
import pytest
from flax import nnx

from mnm_jax.training import (
    Interrupted,
    TrainConfig,
    TrainingFault,
    evaluate,
    init_state,
    load_params,
    read_metrics,
    train,
)


def records(workdir):
    """Returns the lines of metrics.jsonl, without the times."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(workdir)]


def assert_same(found, expected):
    assert found.steps == expected.steps
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert found.metrics.keys() == expected.metrics.keys()
    for name, value in expected.metrics.items():
        np.testing.assert_array_equal(found.metrics[name], value)


class Once:
    """Sends a signal to this process at the `call`-th call only."""

    def __init__(self, call, number=signal.SIGTERM):
        self.left, self.number = call, number

    def __call__(self, *_):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def test_a_run_leaves_its_record_and_learns(tiny, tmp_path):
    config = tiny.config(steps=60, learning_rate=0.3, meta_weight=0.0, log_every=20, eval_every=25)
    result = train(tiny.Recall(), tiny.Model, config, tmp_path)
    lines = records(tmp_path)
    kinds = [(line["step"], next(iter(line.keys() - {"step"})).split("/")[0]) for line in lines]
    assert kinds == [
        (20, "train"),
        (25, "valid"),
        (40, "train"),
        (50, "valid"),
        (60, "train"),
        (60, "valid"),
        (60, "test"),
    ]
    assert np.all(np.array(lines[-2]["valid/loss"]) < np.array(lines[1]["valid/loss"]))
    assert result.metrics["test/noise=0/accuracy"].tolist() == lines[-1]["test/noise=0/accuracy"]
    assert result.metrics["train/grad_norm"].shape == (2,)
    # Evaluation loads the parameters that were measured.
    params, step = load_params(tmp_path, tiny.Model)
    assert step == 60
    again = evaluate(result.graphdef, params, tiny.Recall(), "test", 8)
    np.testing.assert_array_equal(again["test/loss"], result.metrics["test/loss"])


@pytest.mark.parametrize(
    "reads, optimizer", [pytest.param(False, "adam", marks=pytest.mark.slow, id="sampled"), (True, "muon")]
)
def test_an_interrupted_run_ends_with_the_numbers_of_an_uninterrupted_one(tiny, tmp_path, reads, optimizer):
    config = tiny.config(optimizer=optimizer, learning_rate=0.01)
    expected = train(tiny.Recall(reads=reads), tiny.Model, config, tmp_path / "whole")

    # Interrupted while reading batch 6 (halfway between two log lines) or while evaluating after step 8.
    if reads:
        task = tiny.Recall(reads=True, before=(stop := Once(6)))
    else:
        task = tiny.Recall(on_evaluate=(stop := Once(2, signal.SIGINT)))
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    message = "at update . of 12; the state is saved in .* run the same command again to resume"
    with pytest.raises(Interrupted, match=message) as caught:
        train(task, tiny.Model, config, tmp_path / "cut")
    assert stop.left == 0
    assert ("SIGTERM at update 6" if reads else "SIGINT at update 8") in str(caught.value)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert_same(train(task, tiny.Model, config, tmp_path / "cut"), expected)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")


def test_a_crashed_run_resumes_from_the_last_checkpoint_and_times_add_up(tiny, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mnm_jax.training._loop.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    crashes = [7]

    def read(position, batch):
        if [position] == crashes:
            raise KeyError(crashes.pop())
        now[0] += 100.0  # an update takes 100 seconds

    config, task = tiny.config(checkpoint_seconds=250.0), tiny.Recall(reads=True, before=read)
    expected = train(tiny.Recall(reads=True), tiny.Model, config, tmp_path / "whole")
    with pytest.raises(KeyError):
        train(task, tiny.Model, config, tmp_path / "cut")
    folder = tmp_path / "cut" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6"]
    next(path for path in (folder / "6" / "state" / "d").iterdir()).unlink()  # and the newest checkpoint is lost
    now[0] += 10**6  # until someone starts it again
    result = train(task, tiny.Model, config, tmp_path / "cut")
    assert_same(result, expected)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert result.seconds == 12 * 100.0


def test_the_seconds_of_a_run_trained_further_include_those_of_its_test(tiny, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mnm_jax.training._loop.time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def pass_time(seconds):
        now[0] += seconds

    task = tiny.Recall(
        reads=True, before=lambda *_: pass_time(100.0), on_evaluate=lambda split: pass_time(1000.0 * (split == "test"))
    )
    assert train(task, tiny.Model, tiny.config(steps=2, seeds=1), tmp_path).seconds == 1200.0
    pass_time(10**6)  # until someone trains it further
    assert train(task, tiny.Model, tiny.config(steps=4, seeds=1), tmp_path).seconds == 2400.0


def test_a_run_killed_during_its_test_evaluation_resumes_with_it(tiny, tmp_path):
    kills = ["test"]

    def kill(split):
        if [split] == kills:
            raise KeyError(kills.pop())

    def refuse(*_):
        raise AssertionError("the run trains again")

    config = tiny.config(steps=2, seeds=1)
    with pytest.raises(KeyError):
        train(tiny.Recall(reads=True, on_evaluate=kill), tiny.Model, config, tmp_path)
    result = train(tiny.Recall(reads=True, before=refuse), tiny.Model, config, tmp_path)
    assert result.steps == 2 and "test/accuracy" in result.metrics


def test_a_finished_run_is_trained_further_only_if_its_number_of_updates_is_increased(tiny, tmp_path):
    config = tiny.config(steps=2)
    first = train(tiny.Recall(reads=True), tiny.Model, config, tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text()

    def refuse(*_):
        raise AssertionError("the run trains further")

    again = train(tiny.Recall(reads=True, before=refuse, on_evaluate=refuse), tiny.Model, config, tmp_path)
    assert_same(again, first)
    assert again.seconds == first.seconds
    assert (tmp_path / "metrics.jsonl").read_text() == text
    with pytest.raises(ValueError, match="was trained for 2 updates, got steps=1; increase it"):
        train(tiny.Recall(reads=True), tiny.Model, tiny.config(steps=1), tmp_path)

    longer = tiny.config(steps=4)  # at a constant rate: the numbers of an uninterrupted run
    found = train(tiny.Recall(reads=True), tiny.Model, longer, tmp_path)
    assert_same(found, train(tiny.Recall(reads=True), tiny.Model, longer, tmp_path / "whole"))
    assert (tmp_path / "metrics.jsonl").read_text().startswith(text)


def test_a_cosine_that_was_made_longer_rises_again(tiny):
    settings = {"learning_rate": 0.5, "schedule": "cosine", "warmup_steps": 1}
    short, long = (tiny.config(steps=steps, **settings) for steps in (3, 5))
    assert short.learning_rate_at(3) == pytest.approx(0, abs=1e-6)
    assert long.learning_rate_at(3) == pytest.approx(0.25)  # 2 of 4 updates after the warm-up
    assert long.learning_rate_at(0) == 0


def test_a_run_interrupted_on_8_devices_resumes_on_one_and_under_pmap(tiny, tmp_path):
    config = tiny.config(steps=9)
    expected = train(tiny.Recall(reads=True), tiny.Model, config, tmp_path / "whole")
    for call, settings in ((3, {}), (3, {"devices": jax.local_devices()[:1]}), (1000, {"parallel": "pmap"})):
        task = tiny.Recall(reads=True, before=Once(call))
        with contextlib.suppress(Interrupted):
            result = train(task, tiny.Model, config, tmp_path / "moved", **settings)
    for a, b in zip(jax.tree.leaves(result.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_accumulation_pads_a_batch_that_it_does_not_divide(tiny, tmp_path):
    def cut(position, batch):
        return jax.tree.map(lambda leaf: leaf[:, : 6 - position % 2], batch)

    def run(accumulate):
        settings = {"steps": 4, "accumulate": accumulate}
        task = tiny.Recall(reads=True, before=cut)
        return train(task, tiny.Model, tiny.config(**settings), tmp_path / str(accumulate), devices=jax.devices()[:1])

    for a, b in zip(jax.tree.leaves(run(4).params), jax.tree.leaves(run(1).params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_nan_stops_the_run_names_the_leaf_and_keeps_the_last_good_state(tiny, tmp_path):
    def zero(position, batch):
        return batch._replace(inputs=np.zeros_like(batch.inputs)) if position == 4 else None

    def run(steps, **settings):
        return train(tiny.Recall(reads=True, **settings), tiny.Model, tiny.config(steps=steps), tmp_path / str(steps))

    good = run(4)
    message = r"gradient of cell.weights\[0\] is not finite at update 5. The state before that update is saved in .*; "
    with pytest.raises(TrainingFault, match=f"seed 3: {message}") as caught:
        run(12, before=zero)
    assert "\n" not in str(caught.value)
    params, _ = load_params(tmp_path / "12", tiny.Model)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(good.params), strict=True):
        np.testing.assert_array_equal(a, b)
    # No later steps are recorded, and a restart reports the fault again.
    assert max(line["step"] for line in records(tmp_path / "12")) == 4
    with pytest.raises(TrainingFault, match=f"seed 3: {message}"):
        run(12)


def test_a_run_outside_of_the_main_thread_needs_no_signals(tiny, tmp_path):
    results = []
    arguments = tiny.Recall(reads=True), tiny.Model, tiny.config(steps=1), tmp_path
    thread = threading.Thread(target=lambda: results.append(train(*arguments)))
    thread.start()
    thread.join()
    assert results[0].steps == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "steps must be >= 1, got 0."),
        ({"batch_size": 2.5}, "batch_size must be an integer >= 1, got 2.5 of type float: pass an int."),
        ({"seeds": True}, "seeds must be an integer >= 1, got True of type bool: pass an int."),
        ({"accumulate": "2"}, "accumulate must be an integer >= 1, got '2' of type str: pass an int."),
        ({"seeds": 0}, "seeds must be >= 1, got 0."),
        ({"log_every": -1}, "log_every must be >= 1, got -1."),
        ({"eval_every": 0}, "eval_every must be >= 1, got 0."),
        ({"seed": -1}, "seed must be >= 0, got -1."),
        ({"seed": 2**31 - 2, "seeds": 2}, "seed + seeds must be < 2**31, got seed=2147483646 and seeds=2."),
        ({"meta_weight": float("nan")}, "meta_weight must be finite, got nan."),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds must be >= 0, got -1.0."),
        ({"optimizer": "adagrad"}, "optimizer must be one of 'adam', 'adamw', 'muon', 'nadam', 'sgd', got 'adagrad'."),
    ],
)
def test_bad_settings_are_refused_in_one_line(changes, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        TrainConfig(**{"steps": 10, "batch_size": 8, "learning_rate": 0.1} | changes)
    assert str(caught.value) == message


def test_fsdp_never_holds_a_whole_divided_parameter_on_one_device(tiny, tmp_path, monkeypatch):
    class Wide(tiny.Model):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.wide = nnx.Param(jax.random.normal(rngs.params(), (8, 1000)))

    parts, values = set(), []

    def record(*arrays):
        parts.update(shard.data.shape for array in arrays for shard in array.addressable_shards)

    def init(*args):
        state = init_state(*args)
        wide = state.params["wide"][...]
        record(*[] if isinstance(wide, jax.core.Tracer) else [wide])
        return state

    def get_state(loader):  # called when the state is on the devices
        placed = [array for array in jax.live_arrays() if array.shape == (2, 8, 1000)]
        record(*placed)
        values.append(np.asarray(placed[0]))
        return {"position": loader.position}

    task = tiny.Recall(reads=True)
    monkeypatch.setattr("mnm_jax.training._loop.init_state", init)
    monkeypatch.setattr(type(task.loader(0, 8)), "get_state", get_state)
    config = tiny.config(steps=1)
    train(task, Wide, config, tmp_path, parallel="fsdp")
    assert parts == {(2, 8, 125)}
    expected = init_state(Wide, config.make_optimizer(), config.seed, config.seeds)
    np.testing.assert_array_equal(values[0], expected.params["wide"][...])


def test_a_model_with_an_array_made_while_it_is_built_is_refused_in_one_line(tiny, tmp_path):
    class Constant(tiny.Model):
        def __init__(self, rngs):
            super().__init__(rngs)
            table = jax.numpy.ones((1, 1, 3))
            self.scaled = lambda logits: logits * table

        def __call__(self, *args, **kwargs):
            output = super().__call__(*args, **kwargs)
            return output._replace(logits=self.scaled(output.logits))

    with pytest.raises(ValueError, match="the model holds an array that was computed while it was built"):
        train(tiny.Recall(), Constant, tiny.config(), tmp_path)


def test_a_position_that_cannot_be_saved_is_refused_before_the_first_update(tiny, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the run trains")

    task = tiny.Recall(reads=True, before=refuse)
    monkeypatch.setattr(type(task.loader(0, 8)), "get_state", lambda self: {"position": np.int64(self.position)})
    with pytest.raises(ValueError, match=r"get_state must return values of JSON, got \{'position': np.int64\(0\)\}"):
        train(task, tiny.Model, tiny.config(), tmp_path)


def test_a_task_has_one_source_of_batches(tiny, tmp_path):
    class Both(tiny.Recall):
        sample = staticmethod(tiny.draw)

    with pytest.raises(ValueError, match="task recall must have either sample or loader"):
        train(Both(reads=True), tiny.Model, tiny.config(), tmp_path)
