"""Tests the bAbI task: arguments, numbers worked by hand, text pictures, and the real data if available."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("array_record")
pytest.importorskip("grain")
pytest.importorskip("tensorflow_datasets")

from mnm_jax import MNMCell, gradient_memory, local_memory  # noqa: E402
from mnm_jax.training import Batch, Mean, SequenceModel  # noqa: E402
from tasks.babi import Babi, BabiFormatError, parse  # noqa: E402
from tasks.babi.archive import read_files  # noqa: E402
from tasks.babi.readings import readings  # noqa: E402
from tasks.babi.vocabulary import build_vocabulary  # noqa: E402

STORY = "1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary?\tbathroom\t1\n"
LONGER = STORY + "4 Mary left.\n5 Where is John?\thallway\t2\n"


def write_data(root, texts):
    folder = root / "tasks_1-20_v1-2/en"
    folder.mkdir(parents=True)
    for task, (train, test) in texts.items():
        (folder / f"qa{task}_name_train.txt").write_text(train)
        (folder / f"qa{task}_name_test.txt").write_text(test)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes task 1 (20 stories of two questions, 18 for training) and task 6 (10 stories of one question, 9)."""
    root = tmp_path_factory.mktemp("babi")
    yes_no = "1 Mary left.\n2 Is Mary here?\tno\t1\n"
    write_data(root, {1: (LONGER * 20, LONGER * 11), 6: (yes_no * 10, yes_no * 2), 7: (STORY, STORY)})
    return root


@pytest.fixture(scope="module")
def task(folder):
    return Babi(tasks=(6, 1), data_dir=str(folder), size="1k", cache_dir=str(folder / "cache"), embedding_features=5)


def total(batches):
    return sum(batch.loss_mask.sum() for batch in batches)


def test_is_a_task_that_reads_files(task):
    assert (task.name, task.sample, task.input_features, task.output_features) == ("babi", None, 5, 3)
    assert task == dataclasses.replace(task, tasks=[1, 6]) and hash(task)


def test_batches_reach_the_encoder(task):
    batch = next(task.loader(0, 4))
    encoder = task.encoder(nnx.Rngs(0))
    features = encoder(jnp.asarray(batch.inputs))
    assert features.shape == (*batch.mask.shape, 5)
    np.testing.assert_array_equal(np.any(np.asarray(features) != 0, axis=-1), batch.mask)


def test_every_question_and_nothing_else_counts_and_is_asked_on_a_fork(task):
    for batch in (next(task.loader(0, 4)), *task.evaluations("test", 4)[""]()):
        # Sentence, sentence, question, sentence, question; or sentence, question.
        for column in range(batch.mask.shape[1]):
            expected = {5: [0, 0, 1, 0, 1], 2: [0, 1], 0: []}[batch.mask[:, column].sum()]
            np.testing.assert_array_equal(np.flatnonzero(batch.fork[:, column]), np.flatnonzero(expected))
        np.testing.assert_array_equal(batch.fork, batch.loss_mask > 0)


def test_training_and_validation_split_by_story(task):
    running = task.loader(0, 45)
    epoch = [next(running) for _ in range(2)]
    assert sorted(batch.mask.shape for batch in epoch) == [(3, 16), (5, 24)]
    assert sorted(batch.mask.any(0).sum() for batch in epoch) == [9, 18]
    assert sorted(batch.loss_mask.sum() for batch in epoch) == [9, 36]  # 9 stories of one question, 18 of two
    assert total(task.evaluations("valid", 2)[""]()) == 5  # 2 * 2 + 1


def test_evaluations_add_up(task):
    evaluations = task.evaluations("test", 3)
    counts = {name: total(batches()) for name, batches in evaluations.items()}
    assert counts == {"": 24, "task=1": 22, "task=6": 2}
    assert all(task.render(batch, 0).startswith("1 mary left\n?") for batch in evaluations["task=6"]())
    assert set(dataclasses.replace(task, tasks=(6,)).evaluations("test", 3)) == {""}


def test_render_and_tokens(task):
    batches = list(task.evaluations("test", 8)["task=1"]())
    assert [batch.mask.shape for batch in batches] == [(5, 8), (5, 8)]  # 11 stories
    for index in range(8):
        assert task.render(batches[0], index) == (
            "1 mary moved to the bathroom\n2 john went to the hallway\n? where is mary\n= bathroom\n"
            "3 mary left\n? where is john\n= hallway"
        )
    assert task.tokens(batches[1], 2) == [
        "mary moved to the bathroom",
        "john went to the hallway",
        "? where is mary",
        "mary left",
        "? where is john",
    ]
    assert task.render(batches[1], 3) == "(padding)" and task.tokens(batches[1], 3) == []


@pytest.mark.parametrize(
    ("max_sentences", "first", "second"),
    [
        (1, "1 john went to the hallway", "1 mary left"),
        (2, "1 mary moved to the bathroom\n2 john went to the hallway", "1 john went to the hallway\n2 mary left"),
    ],
)
def test_max_sentences_is_what_a_question_sees(task, max_sentences, first, second):
    short = dataclasses.replace(task, max_sentences=max_sentences)
    assert task.output_features == short.output_features
    batch = next(iter(short.evaluations("test", 8)["task=1"]()))
    assert short.render(batch, 0) == f"{first}\n? where is mary\n= bathroom"
    assert short.render(batch, 1) == f"{second}\n? where is john\n= hallway"


def wander(stories, lines, seed):
    """Returns stories with questions between the sentences and one at the end."""
    rng = np.random.default_rng(seed)
    people, places = ("Mary", "John", "Daniel"), ("garden", "hallway", "office", "kitchen")
    text = []
    for _ in range(stories):
        for number in range(1, lines + 1):
            person, place = rng.choice(people), rng.choice(places)
            asked = number == lines or (number > 1 and rng.random() < 0.4)
            line = f"Where is {person}?\t{place}\t1" if asked else f"{person} went to the {place}."
            text.append(f"{number} {line}\n")
    return "".join(text)


@pytest.fixture(scope="module")
def wandering(tmp_path_factory):
    """Returns a task with 20 stories of 9 lines, whose questions see up to four sentences, and its test questions."""
    root, text = tmp_path_factory.mktemp("wander"), wander(20, 9, 0)
    write_data(root, {1: (text, text)})
    options = {"size": "1k", "max_sentences": 4, "embedding_features": 5}
    task = Babi(data_dir=str(root), cache_dir=str(root / "cache"), **options)
    return task, list(parse(text.encode(), "text", 1))


def ask_anew(model, sequences):
    """Returns logits of the last step of each sequence of sentences `[t, W]`; each sequence is run separately."""
    longest = max(map(len, sequences))
    inputs = np.zeros((longest, len(sequences), 11), np.int32)
    mask = np.zeros(inputs.shape[:2], bool)
    for column, sequence in enumerate(sequences):
        inputs[: len(sequence), column] = sequence
        mask[: len(sequence), column] = True
    logits = np.asarray(nnx.jit(lambda model: model(jnp.asarray(inputs), mask=jnp.asarray(mask)).logits)(model))
    return logits[mask.sum(0) - 1, np.arange(len(sequences))]


@pytest.mark.parametrize(
    "apart, of_sentences", [(False, 0), (False, 1), pytest.param(True, 0, marks=pytest.mark.slow), (True, 1)]
)
def test_a_question_with_think_steps_is_answered_as_if_its_sentences_were_read_anew(
    wandering, apart, of_sentences, x64
):
    """The reference runs single steps of the cell, each sentence and question from a new controller."""
    steps: dict = {"think_steps": 2, "sentence_think_steps": of_sentences}
    task = dataclasses.replace(wandering[0], controller="sentence", apart=apart, **steps)
    rngs = nnx.Rngs(0)
    memory = local_memory(4, 4, hidden_sizes=(), param_dtype=jnp.float64)
    cell = MNMCell(5, 4, memory, param_dtype=jnp.float64, rngs=rngs)
    model = SequenceModel(task.encoder(rngs), cell, task.output_features, param_dtype=jnp.float64, rngs=rngs)
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model)
    batch = jax.tree.map(lambda leaf: leaf[:, :2], list(task.evaluations("test", 16)[""]())[-1])
    run = nnx.jit(lambda model, batch: model(batch.inputs, **batch.flags).logits)
    logits = np.asarray(run(model, jax.tree.map(jnp.asarray, batch)))
    step = nnx.jit(lambda model, carry, x: model.step(carry, x))
    start, compared = model.start(1), 0
    for t, b in np.argwhere(batch.loss_mask):
        carry = start
        rows, asks = batch.inputs[: t - 2, b], task.vocabulary.size
        of_questions = (rows[:, -1] >= asks) & (rows[:, -1] <= asks + 2)
        for row in [*rows[~of_questions], *batch.inputs[t - 2 : t + 1, b]]:
            if row[:-1].any():  # no think step
                carry = start._replace(memory=carry.memory)
            before = carry.memory
            carry, expected = step(model, carry, jnp.asarray(row)[None])
            if asks <= row[-1] <= asks + 2 and not apart:
                carry = carry._replace(memory=before)
        np.testing.assert_allclose(logits[t, b], expected[0], rtol=1e-10, atol=1e-12)
        compared += 1
    assert compared >= 2 and np.any(batch.loss_mask.sum(0) > 1) != apart
    labels = task.tokens(batch, 0)
    assert labels[labels.index("think 2") - 2].startswith("? where is") and "think" not in task.render(batch, 0)
    assert (labels[1] == "think 1 of the sentence") == bool(of_sentences)


@pytest.mark.parametrize("make_memory", [local_memory, pytest.param(gradient_memory, marks=pytest.mark.slow)])
def test_a_question_in_a_reading_is_answered_as_if_its_sentences_were_read_anew(wandering, make_memory, x64):
    """The reference is computed from the parsed questions, without readings and forks."""
    task, questions = wandering
    rngs = nnx.Rngs(0)
    memory = make_memory(4, 4, hidden_sizes=(6,), param_dtype=jnp.float64)
    cell = MNMCell(5, 8, memory, heads=2, param_dtype=jnp.float64, rngs=rngs)
    model = SequenceModel(task.encoder(rngs), cell, task.output_features, rngs=rngs)
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model)
    word_ids = task._dataset.vocabulary.word_ids()

    def encode(rows):
        return np.array([[word_ids[word] for word in row] + [0] * (11 - len(row)) for row in rows])

    sequences = [encode((*question.story[-4:], question.question)) for question in questions]
    expected = collections.defaultdict(list)
    for sequence, logits in zip(sequences, ask_anew(model, sequences), strict=True):
        expected[sequence.tobytes()].append(logits)

    run = nnx.jit(lambda model, inputs, mask, fork: model(inputs, mask=mask, fork=fork).logits)
    later, without_forks = 0, 0.0
    for batch in task.evaluations("test", 16)[""]():
        inputs, mask, fork = map(jnp.asarray, (batch.inputs, batch.mask, batch.fork))
        found, spoiled = np.asarray(run(model, inputs, mask, fork)), np.asarray(run(model, inputs, mask, None))
        for t, b in np.argwhere(batch.fork):
            told = np.flatnonzero(~batch.fork[:t, b])
            key = np.asarray(batch.inputs[[*told, t], b], np.int64).tobytes()
            answers = expected[key]
            assert answers, "a question that is not asked in the file, or once too often"
            np.testing.assert_allclose(found[t, b], answers.pop(), rtol=1e-10, atol=1e-12)
            if len(told) < t:  # another question was asked before
                later += 1
                without_forks = max(without_forks, np.abs(found[t, b] - spoiled[t, b]).max())
    assert not any(expected.values())
    assert later > 10 and without_forks > 1e-3


def make_batch(targets, loss_mask):
    targets = np.asarray(targets, np.int32)
    mask = np.ones(targets.shape, np.bool_)
    return Batch(np.zeros((*targets.shape, 11), np.int32), targets, np.asarray(loss_mask, np.float32), mask)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_loss_and_metrics_by_hand(dtype):
    batch = make_batch([[0, 0], [2, 1], [0, 0]], [[0, 0], [1, 1], [0, 0]])
    logits = jnp.zeros((3, 2, 3)).at[1, 0, 2].set(2.0).at[0].set(jnp.inf).at[2].set(jnp.nan).astype(dtype)
    loss, metrics = Babi().loss(logits, batch), Babi().metrics(logits, batch)
    # Example 0: log(2 + e^2) - 2; example 1: uniform over 3 answers, and the first one, 0, is taken: wrong.
    np.testing.assert_allclose(loss.total, np.log(2 + np.exp(2)) - 2 + np.log(3), rtol=1e-6)
    assert isinstance(loss, Mean) and loss.count == 2 and loss.total.dtype == jnp.float32
    assert {name: (float(mean.total), float(mean.count)) for name, mean in metrics.items()} == {
        "accuracy": (1, 2),
        "error": (1, 2),
    }


def test_loss_gives_no_gradient_where_no_step_counts():
    batch = make_batch([[0, 0], [2, 1]], [[0, 0], [1, 0]])
    gradient = jax.grad(lambda logits: Babi().loss(logits, batch).total)(jnp.ones((2, 2, 3)))
    np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=-1), batch.loss_mask > 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, r"tasks must be a tuple of task numbers such as \(1, 2\), got \(\)"),
        ({"tasks": 3}, "tasks must be a tuple of task numbers .* got 3"),
        ({"tasks": (1, 21)}, "tasks must be numbers from 1 to 20, got 21"),
        ({"tasks": (0,)}, "tasks must be numbers from 1 to 20, got 0"),
        ({"tasks": (True,)}, "tasks must be numbers from 1 to 20, got True"),
        ({"tasks": ("1",)}, "tasks must be numbers from 1 to 20, got '1'"),
        ({"tasks": (2, 2)}, "tasks must name each task once"),
        ({"size": "2k"}, "size must be one of '1k', '10k', got '2k'"),
        ({"max_sentences": 0}, "max_sentences must be >= 1, got 0"),
        ({"max_sentences": -3}, "max_sentences must be >= 1, got -3"),
        ({"max_sentences_task3": 1.5}, "max_sentences_task3 must be an integer >= 1, got 1.5"),
        ({"renaming": "yes"}, "renaming must be True or False, got 'yes'"),
        ({"oversampled": (1, 2)}, r"oversampled must be a tuple of chosen tasks, \(1,\), got \(1, 2\)"),
        ({"oversampled": (True,)}, r"oversampled must be a tuple .* got \(True,\)"),
        ({"oversampled": 1}, "oversampled must be a tuple .* got 1"),
        ({"first_tasks": (2,), "first_epochs": 1}, r"first_tasks must be a tuple of chosen tasks, \(1,\), got \(2,\)"),
        ({"first_tasks": (1,)}, r"belong together, got \(1,\) and 0: set both, or leave both out"),
        ({"first_epochs": 3}, r"belong together, got \(\) and 3"),
        ({"first_epochs": -1}, "first_epochs must be >= 0, got -1"),
        ({"data_dir": 3}, "data_dir must be the path of a folder, got 3"),
        ({"embedding_features": 0}, "embedding_features must be >= 1, got 0"),
        ({"entities": -1}, "entities must be >= 0, got -1"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Babi(**changes)


def test_wrong_calls_are_named(task):
    with pytest.raises(ValueError, match="split must be one of 'valid', 'test', got 'train'"):
        task.evaluations("train", 4)
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        task.evaluations("test", 0)
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        task.loader(0, 0)
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        task.loader(-1, 4)
    with pytest.raises(ValueError, match="batch_size must be <= 45"):
        task.loader(0, 46)


def test_missing_validation_missing_data_and_damage_are_named(task, tmp_path):
    with pytest.raises(ValueError, match="have no validation: a file needs 10 stories or more"):
        dataclasses.replace(task, tasks=(7,)).evaluations("valid", 4)
    task_7 = dataclasses.replace(task, tasks=(1, 7))  # of which only task 1 has stories to hold out
    with pytest.raises(ValueError, match="task=7 has no story of 'valid': a training file needs 10 stories or more"):
        task_7.evaluations("valid", 4)
    with pytest.raises(FileNotFoundError, match="no bAbI data in .*tasks_1-20_v1-2.tar.gz .* as data_dir"):
        dataclasses.replace(task, data_dir=str(tmp_path / "nowhere")).loader(0, 4)
    write_data(tmp_path, {1: (STORY, STORY.replace("\t1", "\t3"))})
    with pytest.raises(BabiFormatError, match=r"qa1_name_test\.txt:3: expected supporting ids of earlier sentences"):
        dataclasses.replace(task, tasks=(1,), data_dir=str(tmp_path)).loader(0, 4)


@pytest.fixture(scope="module")
def real_task(babi_dir, tmp_path_factory):
    return Babi(data_dir=str(babi_dir), size="1k", cache_dir=str(tmp_path_factory.mktemp("cache")))


def last_location(story, question):
    """Returns the oracle's answer to task 1: the last word of the last sentence about the person in question."""
    person = question.split()[-1]
    return [sentence.split()[-1] for sentence in story if sentence.split()[1] == person][-1]


def test_an_oracle_solves_task_1(real_task):
    answers = real_task._dataset.vocabulary.answers
    right = questions = 0
    for batch in real_task.evaluations("test", 64)[""]():
        logits = np.zeros((*batch.targets.shape, len(answers)), np.float32)
        for index in np.flatnonzero(batch.mask[0]):
            story, step = [], 0
            for line in real_task.render(batch, index).split("\n"):
                if line.startswith("="):
                    continue
                if line.startswith("?"):
                    logits[step, index, answers.index(last_location(story, line))] = 1
                else:
                    story.append(line)
                step += 1
        accuracy = real_task.metrics(jnp.asarray(logits), batch)["accuracy"]
        right, questions = right + accuracy.total, questions + accuracy.count
    assert right == questions == 1000


def test_one_tenth_of_the_real_stories_is_held_out(real_task):
    splits = real_task._dataset.splits
    # A story of task 1 is five questions, each after two more sentences.
    assert {name: len(split.records) for name, split in splits.items()} == {"train": 180, "valid": 20, "test": 200}
    for split in splits.values():
        assert set(split.steps) == {15} and set(split.questions) == {5}
    assert len(real_task._dataset.vocabulary.answers) == 6


@pytest.mark.slow
def test_the_facts_of_the_whole_data_set(babi_dir):
    files = read_files(babi_dir, "10k", range(1, 21))
    parsed = {key: list(parse(file.data, file.path, key[0])) for key, file in files.items()}
    questions = [question for part in parsed.values() for question in part]
    assert {(split, len(part)) for (_, split), part in parsed.items()} == {("train", 10_000), ("test", 1000)}
    read = {key: list(readings(part, 130 if key[0] == 3 else 70)) for key, part in parsed.items()}
    found = [reading for part in read.values() for reading in part]
    assert sum(answer is not None for reading in found for answer in reading.answers) == len(questions) == 220_000
    words, answers = build_vocabulary(found)
    assert (len(words), len(answers), len({*words, *answers})) == (145, 60, 176)
    assert sum("," in answer for answer in answers) == 24
    longest_story = collections.Counter()
    sentences = set()
    # The simulated training stories of task 3, from number 385 on, are not part of the official archive.
    parsed[3, "train"] = [question for question in parsed[3, "train"] if question.story_index < 385]
    assert len(parsed[3, "train"]) == 1925
    for question in (question for part in parsed.values() for question in part):
        longest_story[question.task] = max(longest_story[question.task], len(question.story))
        sentences |= {question.question, *question.story[-2:]}
    assert max(map(len, sentences)) == 11
    assert longest_story.most_common(5) == [(3, 228), (5, 126), (2, 88), (8, 58), (7, 52)]
    assert longest_story.most_common(6)[5][1] == 26
    parts = {key: len(part) - len({reading.story_index for reading in part}) for key, part in read.items()}
    split = {key: more for key, more in parts.items() if more}  # all other stories are one reading each
    assert split == {(2, "test"): 4, (3, "train"): 339, (3, "test"): 20, (5, "train"): 48, (5, "test"): 4}
