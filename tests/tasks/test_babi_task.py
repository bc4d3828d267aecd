"""The task: arguments, figures by hand, pictures; and the real data, where they are at hand."""

import collections
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("array_record")
pytest.importorskip("grain")
pytest.importorskip("tensorflow_datasets")

import tasks.babi  # noqa: E402
from mnm_jax.training.task import Batch, Mean  # noqa: E402
from tasks.babi import Babi, BabiFormatError, parse  # noqa: E402
from tasks.babi.archive import read_files  # noqa: E402
from tasks.babi.vocabulary import build_vocabulary  # noqa: E402

SHARED = Path(tasks.babi.__file__).resolve().parents[3] / "shared/data/babi"
needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="no bAbI data: put the official tasks_1-20_v1-2.tar.gz into ../shared/data/babi"
)

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
    """Task 1: 20 stories of two questions, 18 for training; task 6: 10 stories of one question, 9 for training."""
    root = tmp_path_factory.mktemp("babi")
    yes_no = "1 Mary left.\n2 Is Mary here?\tno\t1\n"
    write_data(root, {1: (LONGER * 20, LONGER * 3), 6: (yes_no * 10, yes_no * 2), 7: (STORY, STORY)})
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


def test_training_and_validation_split_by_story(task):
    train = [next(task.loader(0, 45)) for _ in range(1)][0]
    assert train.loss_mask.sum() == 45  # 18 * 2 + 9
    assert total(task.evaluations("valid", 2)[""]()) == 5  # 2 * 2 + 1


def test_evaluations_add_up(task):
    evaluations = task.evaluations("test", 3)
    counts = {name: total(batches()) for name, batches in evaluations.items()}
    assert counts == {"": 8, "task=1": 6, "task=6": 2}
    assert all(task.render(batch, 0).startswith("1 mary left\n?") for batch in evaluations["task=6"]())
    assert set(dataclasses.replace(task, tasks=(6,)).evaluations("test", 3)) == {""}


def test_render(task):
    batch = next(iter(task.evaluations("test", 8)["task=1"]()))
    assert task.render(batch, 0) == (
        "1 mary moved to the bathroom\n2 john went to the hallway\n? where is mary\n= bathroom"
    )
    assert task.render(batch, 3) == (
        "1 mary moved to the bathroom\n2 john went to the hallway\n3 mary left\n? where is john\n= hallway"
    )
    assert task.render(batch, 7) == "(padding)"


def test_max_sentences_cuts_the_story(task):
    short = dataclasses.replace(task, max_sentences=1)
    batch = next(iter(short.evaluations("test", 8)["task=1"]()))
    assert task.output_features == short.output_features
    assert short.render(batch, 0) == "1 john went to the hallway\n? where is mary\n= bathroom"


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
        ({"tasks": ()}, r"tasks must be a tuple of task numbers such as \(1, 2\), got tasks=\(\)"),
        ({"tasks": 3}, "tasks must be a tuple of task numbers .* got tasks=3"),
        ({"tasks": (1, 21)}, "tasks must be numbers from 1 to 20, got 21"),
        ({"tasks": (0,)}, "tasks must be numbers from 1 to 20, got 0"),
        ({"tasks": (True,)}, "tasks must be numbers from 1 to 20, got True"),
        ({"tasks": ("1",)}, "tasks must be numbers from 1 to 20, got '1'"),
        ({"tasks": (2, 2)}, "tasks must name each task once"),
        ({"size": "2k"}, "size must be one of '1k', '10k', got size='2k'"),
        ({"max_sentences": 0}, "max_sentences must be an integer >= 1, got max_sentences=0"),
        ({"max_sentences": -3}, "got max_sentences=-3"),
        ({"max_sentences_task3": 1.5}, "max_sentences_task3 must be an integer >= 1, got max_sentences_task3=1.5"),
        ({"embedding_features": 0}, "embedding_features must be an integer >= 1"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Babi(**changes)


def test_wrong_calls_are_named(task):
    with pytest.raises(ValueError, match="split must be 'valid' or 'test', got split='train'"):
        task.evaluations("train", 4)
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got batch_size=0"):
        task.evaluations("test", 0)
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got batch_size=0"):
        task.loader(0, 0)
    with pytest.raises(ValueError, match="seed must be an integer >= 0, got seed=-1"):
        task.loader(-1, 4)
    with pytest.raises(ValueError, match="batch_size must be <= 45"):
        task.loader(0, 46)


def test_missing_validation_missing_data_and_damage_are_named(task, tmp_path):
    with pytest.raises(ValueError, match="have no validation: a file needs 10 stories or more"):
        dataclasses.replace(task, tasks=(7,)).evaluations("valid", 4)
    with pytest.raises(FileNotFoundError, match="no bAbI data in .*tasks_1-20_v1-2.tar.gz"):
        dataclasses.replace(task, data_dir=str(tmp_path / "nowhere")).loader(0, 4)
    write_data(tmp_path, {1: (STORY, STORY.replace("\t1", "\t3"))})
    with pytest.raises(BabiFormatError, match=r"qa1_name_test\.txt:3: expected supporting ids of earlier sentences"):
        dataclasses.replace(task, tasks=(1,), data_dir=str(tmp_path)).loader(0, 4)


@pytest.fixture(scope="module")
def real_task(tmp_path_factory):
    return Babi(data_dir=str(SHARED), size="1k", cache_dir=str(tmp_path_factory.mktemp("cache")))


def last_location(story, question):
    """The oracle of task 1: the last word of the last sentence about the person that is asked for."""
    person = question.split()[-1]
    return [sentence.split()[-1] for sentence in story if sentence.split()[1] == person][-1]


@needs_data
def test_an_oracle_solves_task_1(real_task):
    answers = real_task._dataset.vocabulary.answers
    right = questions = 0
    for batch in real_task.evaluations("test", 64)[""]():
        logits = np.zeros((*batch.targets.shape, len(answers)), np.float32)
        for index in range(64):
            if not batch.mask[:, index].any():
                continue
            *story, question, _ = real_task.render(batch, index).split("\n")
            steps = len(story)  # the question is the step after the story
            logits[steps, index, answers.index(last_location(story, question))] = 1
        accuracy = real_task.metrics(jnp.asarray(logits), batch)["accuracy"]
        right, questions = right + accuracy.total, questions + accuracy.count
    assert right == questions == 1000


@needs_data
def test_one_tenth_of_the_real_stories_is_held_out(real_task):
    splits = real_task._dataset.splits
    assert {name: len(split.records) for name, split in splits.items()} == {"train": 900, "valid": 100, "test": 1000}
    assert len(real_task._dataset.vocabulary.answers) == 6


@needs_data
def test_the_facts_of_the_whole_data_set():
    files = read_files(SHARED, "10k", range(1, 21))
    parsed = {key: list(parse(file.data, file.path, key[0])) for key, file in files.items()}
    questions = [question for part in parsed.values() for question in part]
    assert {(split, len(part)) for (_, split), part in parsed.items()} == {("train", 10_000), ("test", 1000)}
    words, answers = build_vocabulary(questions)
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
