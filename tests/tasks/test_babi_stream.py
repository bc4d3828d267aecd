"""Tests catbAbI: a stream worked by hand, its order, resuming, scoring, and a model whose carry crosses all borders."""

import collections
import contextlib
import itertools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from launch.runs.build import build_make_model
from mnm_jax.training import Interrupted, TrainConfig, evaluate, init_state, read_metrics, split_model, train
from tasks.babi import BabiStream, parse
from tasks.babi.cache import Dataset, Split
from tasks.babi.encode import encode_reading
from tasks.babi.language import Language
from tasks.babi.readings import readings
from tasks.babi.stream_asking import StreamConversation
from tasks.babi.vocabulary import build_vocabulary

MARY = "1 Mary left.\n2 Where is Mary?\ta,b\t1\n3 John is in.\n4 Is John in?\tyes\t3\n"
MARY_STREAM = "mary{0} left . where is mary{0} ? a,b john is in . is john in ? yes"
ANN = "1 Ann ran!\n2 Who ran?\tAnn\t1\n"
ANN_STREAM = "ann{0} ran . who ran ? ann{0}"
COUNTS = {"train": 5, "valid": 2, "test": 3}  # stories of each task


class Records(list):
    """A list with the reading method of TFDS data sources."""

    def __getitems__(self, ids):
        return [self[index] for index in ids]


@pytest.fixture(scope="module")
def dataset():
    """Returns stories of tasks 1 and 6 that differ in one name: mary0, mary1, ..."""
    found = {}
    for split, count in COUNTS.items():
        found[split] = []
        for number, story, name in ((1, MARY, "Mary"), (6, ANN, "Ann")):
            text = "".join(story.replace(name, f"{name}{index}") for index in range(count))
            found[split] += readings(parse(text.encode(), "an example", number), max_sentences=100)
    vocabulary = build_vocabulary(reading for part in found.values() for reading in part)
    ids, answers = vocabulary.word_ids(), vocabulary.answer_ids()
    splits = {
        name: Split(
            records=Records(encode_reading(reading, ids, answers) for reading in part),
            steps=np.array([len(reading.rows) for reading in part]),
            questions=np.array([sum(answer is not None for answer in reading.answers) for reading in part]),
            tasks=np.array([reading.task for reading in part]),
        )
        for name, part in found.items()
    }
    return Dataset(vocabulary=vocabulary, counts=np.ones(vocabulary.size), splits=splits)


@pytest.fixture(scope="module")
def make_task(dataset):
    def make(**settings):
        task = BabiStream(**{"tasks": (1, 6), "window": 7, "embedding_features": 3} | settings)
        task.__dict__["_dataset"] = dataset
        return task

    return make


def samples(task, batches, stream):
    """Returns the samples of a stream as texts without "<end>"; the batches begin with a whole sample."""
    words = itertools.chain(*(task.tokens(batch, stream) for batch in batches))
    return [sample.strip() for sample in " ".join(words).split("<end>")[1:]]


def expected_samples(count):
    return sorted(text.format(i) for text in (MARY_STREAM, ANN_STREAM) for i in range(count))


def test_a_stream_by_hand(make_task):
    task = make_task(window=80, reads="sentence")
    (batch,) = task.evaluations("test", 5)[""]()
    words, inputs, targets = task.tokens(batch, 0), batch.inputs[:, 0], batch.targets[:, 0]
    start = words.index("mary1") - 1
    sample = ["<end>", *MARY_STREAM.format(1).split()]
    assert words[start:][:18] == sample and len(words) == batch.mask.sum() == 3 * (18 + 8)
    np.testing.assert_array_equal(np.flatnonzero(batch.loss_mask[start:][:18]), [7, 16])
    assert [task.vocabulary.words[target - 1] for target in targets[[start + 7, start + 16]]] == ["a,b", "yes"]
    np.testing.assert_array_equal(np.flatnonzero(inputs[start:][:17, 0] == 1), [7, 16])  # the number of the task
    assert batch.reset_controller is None
    (resets,) = make_task(window=80, controller="sentence").evaluations("test", 5)[""]()
    np.testing.assert_array_equal(
        np.flatnonzero(resets.reset_controller[start:, 0][:18]), [0, 1, 4, 8, 9, 13, 17]
    )  # <end>, mary1, where, a,b, john, is, yes
    assert not resets.reset_controller[~resets.mask].any()
    # A step has the words of its sentence so far; an answer and an end have none before them.
    ids = task.vocabulary.word_ids()
    sentences = {0: "<end>", 2: "mary1 left", 3: "mary1 left .", 7: "where is mary1 ?", 8: "a,b", 9: "john", 17: "yes"}
    for step, sentence in sentences.items():
        row = [ids[word] for word in sentence.split()]
        np.testing.assert_array_equal(inputs[start + step, 1:], [row[-1], *row, *[0] * (12 - len(row))])
    picture = "<end>\nmary1 left .\nwhere is mary1 ? a,b\n= a,b\njohn is in .\nis john in ? yes\n= yes\n"
    assert picture in task.render(batch, 0) and task.render(batch, 0).endswith("(9 answers, 78 words)")


def test_in_language_mode_every_step_counts_and_its_target_is_the_next_word(make_task):
    asked, every = (list(make_task(mode=mode).evaluations("valid", 1)[""]()) for mode in ("question", "language"))
    words = np.concatenate([batch.inputs[:, 0, 1] for batch in every])[:52]
    targets = np.concatenate([batch.targets[:, 0] for batch in every])
    np.testing.assert_array_equal(targets[:52], [*words[1:], words[0]])  # "<end>" before and after all samples
    assert sum(batch.loss_mask.sum() for batch in every) == 52
    at = np.concatenate([batch.loss_mask[:, 0] for batch in asked]) > 0
    assert at.sum() == 6
    np.testing.assert_array_equal(np.concatenate([batch.targets[:, 0] for batch in asked])[at], targets[at])


def test_training_reads_every_sample_once_per_epoch_in_streams_that_others_do_not_change(make_task):
    task = make_task()
    batches = list(itertools.islice(task.loader(1, 3), 90))
    streams = [samples(task, batches, stream)[:-1] for stream in range(3)]  # the last sample is cut
    dealt = [sample for row in zip(*streams, strict=False) for sample in row]
    epochs = [dealt[i : i + 10] for i in range(0, 100, 10)]
    assert all(sorted(epoch) == expected_samples(5) for epoch in epochs) and epochs[0] != epochs[1]
    halves = [task.loader(1, 4, (part, 2)) for part in (0, 1)]
    for whole, *parts in itertools.islice(zip(task.loader(1, 4), *halves, strict=True), 20):
        jax.tree.map(lambda a, *b: np.testing.assert_array_equal(a, np.concatenate(b, 1)), whole, *parts)


def test_the_first_epochs_draw_the_first_tasks_alone(make_task):
    """Three epochs of the 5 samples of task 6, dealt out over their borders, then epochs of all 10."""
    task = make_task(first_tasks=(6,), first_epochs=3)
    batches = list(itertools.islice(task.loader(1, 2), 90))
    streams = [samples(task, batches, stream)[:-1] for stream in range(2)]
    dealt = [sample for row in zip(*streams, strict=False) for sample in row]
    for begin in (0, 5, 10):
        assert sorted(dealt[begin : begin + 5]) == sorted(ANN_STREAM.format(i) for i in range(5))
    for begin in (15, 25):
        assert sorted(dealt[begin : begin + 10]) == expected_samples(5)
    with pytest.raises(ValueError, match=r"the saved loader has first_epochs=None, this one first_epochs=\[3, "):
        task.loader(1, 2).set_state(make_task().loader(1, 2).get_state())


@pytest.mark.parametrize("position", [0, 1, 40])
@pytest.mark.parametrize("settings", [{}, {"first_tasks": (1,), "first_epochs": 2}])
def test_a_loader_resumes_at_the_same_words(make_task, position, settings):
    running, resumed = (make_task(**settings).loader(5, 3) for _ in range(2))
    for _ in range(position):
        next(running)
    resumed.set_state(json.loads(json.dumps(running.get_state())))
    for _ in range(30):
        jax.tree.map(np.testing.assert_array_equal, next(running), next(resumed))
    with pytest.raises(ValueError, match="the saved loader has streams=3, this one streams=2"):
        make_task().loader(5, 2).set_state(running.get_state())


@pytest.mark.parametrize(("split", "streams"), [("valid", 3), ("test", 1)])
def test_an_evaluation_reads_every_sample_once(make_task, split, streams):
    task = make_task()
    batches = list(task.evaluations(split, 3)[""]())
    assert {batch.mask.shape for batch in batches} == {(7, streams)}
    found = [sample for stream in range(streams) for sample in samples(task, batches, stream)]
    assert sorted(found) == expected_samples(COUNTS[split])


def test_metrics_by_hand(make_task):
    """Task 1 has a right and a wrong answer, task 6 a wrong one; other steps count only for the loss."""
    task = make_task(mode="language")
    batch = task.evaluations("test", 1)[""]().__next__()
    asked = np.array([[0], [1], [0], [1], [6], [0], [0]])
    inputs = np.concatenate([asked[..., None], batch.inputs[..., 1:]], -1)
    targets = np.full((7, 1), 3, np.int32)
    logits = jnp.zeros((7, 1, task.output_features)).at[jnp.array([0, 1]), 0, 3].set(9.0)
    batch = batch._replace(inputs=inputs, targets=targets)
    found = {name: (float(mean.total), float(mean.count)) for name, mean in task.metrics(logits, batch).items()}
    assert found == {
        "accuracy": (1, 3),
        "error": (2, 3),
        "task=1/accuracy": (1, 2),
        "task=1/error": (1, 2),
        "task=6/accuracy": (0, 1),
        "task=6/error": (1, 1),
    }
    assert task.loss(logits, batch).count == 7


SIZES = {"lstm": {}, "mnm-p": {"memory_features": 3, "memory_layers": 1}, "chain-p": {"heads": 2}}


def make_model(task, name):
    return build_make_model({"name": name, "hidden_features": 3, **SIZES[name]}, task)


@pytest.mark.parametrize("name", ["lstm", pytest.param("mnm-p", marks=pytest.mark.slow)])
def test_an_evaluation_is_a_plain_loop_over_all_words_wherever_windows_are_cut(make_task, name):
    task = make_task()
    graphdef = split_model(make_model(task, name))
    params = init_state(make_model(task, name), optax.identity(), 0, 1).params
    one = jax.local_devices()[:1]
    found, whole = (evaluate(graphdef, params, make_task(window=window), "test", 2, devices=one) for window in (7, 80))
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)

    model = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], params))
    step, carry, nats, right = nnx.jit(type(model).step), model.start(1), [], collections.defaultdict(list)
    for batch in task.evaluations("test", 2)[""]():
        for inputs, target, counted in zip(batch.inputs, batch.targets[:, 0], batch.loss_mask[:, 0], strict=True):
            carry, logits = step(model, carry, jnp.asarray(inputs))
            if counted:
                nats.append(-jax.nn.log_softmax(logits)[0, target])
                right[inputs[0, 0]].append(int(np.argmax(logits[0]) == target))
    np.testing.assert_allclose(found["test/loss"], [np.mean(nats)], rtol=1e-5)
    assert {task: len(answers) for task, answers in right.items()} == {1: 6, 6: 3}
    for number, answers in right.items():
        np.testing.assert_allclose(found[f"test/task={number}/accuracy"], [np.mean(answers)])


def test_the_number_of_the_task_does_not_reach_the_model(make_task):
    for reads in ("word", "sentence"):
        task = make_task(reads=reads)
        encoder, inputs = task.encoder(nnx.Rngs(0)), next(task.loader(0, 2)).inputs
        without = np.where(np.arange(inputs.shape[-1]) == 0, 0, inputs)
        assert np.any(inputs != without)
        np.testing.assert_array_equal(encoder(jnp.asarray(inputs)), encoder(jnp.asarray(without)))


@pytest.mark.parametrize(
    "reads, controller, name",
    [("word", "stream", "lstm"), ("sentence", "stream", "lstm"), ("word", "sentence", "mnm-p")],
)
def test_a_conversation_is_one_stream_with_the_answers_of_the_model(make_task, reads, controller, name):
    task = make_task(reads=reads, controller=controller)
    model = make_model(task, name)(nnx.Rngs(0))
    (batch,) = make_task(reads=reads, window=80).evaluations("test", 1)[""]()
    start = task.tokens(batch, 0).index("mary1") + 3
    written = np.where(np.arange(batch.inputs.shape[-1]) == 0, 0, batch.inputs[:, 0])  # without the task's number
    np.testing.assert_array_equal(task.encode(("where", "is", "mary1"), "?"), written[start : start + 4])

    language = Language(task.vocabulary, {}, {"where is *"})
    conversation, texts, answers = StreamConversation(task, model, lambda: language), ["<end>"], []
    for line in ("1 Mary1 left.", "Where is Mary1?", "/new", "John is in!", "Is John in?\tyes\t1"):
        with pytest.raises(ValueError, match="the word 'jon' in 'jon left' is not .*; near words are john"):
            conversation.tell("Jon left.")
        answer = conversation.tell(line)
        text = line.partition("\t")[0].removeprefix("1 ").lower()
        texts.append("<end>" if line == "/new" else f"{text[:-1]} {'?' if answer else '.'}")
        if answer is not None:
            answers.append(answer)
            sentences = [text.split() for text in texts]
            marks = [words.pop() if len(words) > 1 else "" for words in sentences]
            steps = list(map(task.encode, sentences, marks))
            first = np.concatenate([np.arange(len(rows)) == 0 for rows in steps])[:, None]
            flags = {"reset_controller": jnp.asarray(first)} if controller == "sentence" else {}
            logits = jax.jit(lambda x, **flags: model(x, **flags).logits)(
                jnp.asarray(np.concatenate(steps))[:, None], **flags
            )[-1, 0]
            expected = np.asarray(jax.nn.softmax(logits))[1:]
            best = np.argsort(-expected)[:3]
            assert [word for word, _ in answer.answers] == [task.vocabulary.words[place] for place in best]
            np.testing.assert_allclose([share for _, share in answer.answers], expected[best], rtol=1e-5)
            texts.append(answer.answers[0][0])
    assert [answer.story for answer in answers] == [1, 2]
    assert [answer.guessed for answer in answers] == [False, True]
    assert answers[1].notes == ["training has no question of the form 'is * in'"]
    # The story before the "/new" is not that of the question.
    assert conversation.tell("Where is Mary1?").notes == ["the story does not mention 'mary1'"]
    assert conversation.tell("Where is John?").notes != ["the story does not mention 'john'"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnm-p", "chain-p"])
def test_a_run_that_is_interrupted_and_resumed_ends_with_the_same_numbers(make_task, tmp_path, monkeypatch, name):
    chain = {"reads": "sentence", "entities": 2, "entity_features": 3} if name == "chain-p" else {}
    task = make_task(**chain)
    config = TrainConfig(steps=5, batch_size=4, learning_rate=0.01, log_every=1, eval_every=3, meta_weight=0.1)
    one = jax.local_devices()[:1]
    expected = train(task, make_model(task, name), config, tmp_path / "whole", devices=one)
    stops = [2]
    next_window = type(task.loader(0, 4)).__next__

    def stop(loader):
        if [loader.get_state()["position"]] == stops:
            os.kill(os.getpid(), signal.SIGTERM)
            stops.pop()
        return next_window(loader)

    monkeypatch.setattr(type(task.loader(0, 4)), "__next__", stop)
    with contextlib.suppress(Interrupted):
        train(task, make_model(task, name), config, tmp_path / "cut", devices=one)
    assert read_metrics(tmp_path / "cut")[-1]["step"] == 3
    found = train(task, make_model(task, name), config, tmp_path / "cut", devices=one)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    lines = [[line | {"seconds": 0} for line in read_metrics(tmp_path / run)] for run in ("cut", "whole")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "window must be >= 1, got 0"),
        ({"mode": "answers"}, "mode must be one of 'question', 'language', got 'answers'"),
        ({"controller": "story"}, "controller must be one of 'stream', 'sentence', got 'story'"),
        ({"reads": "story"}, "reads must be one of 'word', 'sentence', got 'story'"),
        ({"entities": 2}, "entities are picked from a sentence: set reads='sentence', got entities=2"),
        ({"tasks": (21,)}, "tasks must be numbers from 1 to 20, got 21"),
        ({"tasks": (1,), "first_tasks": (2,), "first_epochs": 1}, r"first_tasks must be a tuple of chosen tasks"),
        ({"cache_dir": 3}, "cache_dir must be the path of a folder, got 3"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        BabiStream(**changes)


def test_missing_validation_is_named(make_task, dataset):
    task = make_task(tasks=(1,))
    task.__dict__["_dataset"] = dataset._replace(splits={"train": dataset.splits["train"]})
    with pytest.raises(ValueError, match=r"tasks \(1,\) have no validation: a file needs 10 stories or more"):
        task.evaluations("valid", 2)
