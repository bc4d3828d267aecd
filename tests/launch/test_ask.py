"""Tests `launch.ask`: the answers of a trained model follow from the given story."""

import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

pytest.importorskip("array_record")
pytest.importorskip("grain")
pytest.importorskip("tensorflow_datasets")

from launch.ask import load_babi  # noqa: E402
from launch.reporting.draw import report_run  # noqa: E402
from launch.runs.evaluate import evaluate_run  # noqa: E402
from launch.runs.export import export_run  # noqa: E402
from launch.train import run  # noqa: E402
from tasks.babi.asking import ask, format_answer  # noqa: E402

PLACES = ("garden", "kitchen")
STORIES = "".join(
    f"1 {who} went to the {first}.\n2 Where is {who}?\t{first}\t1\n3 {who} went to the {second}.\n"
    f"4 Where is {who}?\t{second}\t3\n"
    for who in ("Mary", "John")
    for first in PLACES
    for second in PLACES
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, without_drawing):
    """Trains a model on stories about one person, whose last place is the answer."""
    root = tmp_path_factory.mktemp("ask")
    folder = root / "data/tasks_1-20_v1-2/en"
    folder.mkdir(parents=True)
    (folder / "qa1_name_train.txt").write_text(STORIES * 5)
    (folder / "qa1_name_test.txt").write_text(STORIES)
    task = {"name": "babi", "size": "1k", "data_dir": str(root / "data"), "cache_dir": str(root / "cache")}
    task |= {"entities": 2, "entity_features": 8}
    model = {"name": "chain-p", "hidden_features": 16, "relation_features": 2, "heads": 2, "hops": 1}
    training = {"steps": 120, "batch_size": 64, "learning_rate": 1e-2, "eval_every": 120, "seeds": 1}
    with without_drawing():
        summary = run(ConfigDict({"task": task, "model": model, "training": training}), root / "run")
    assert summary["metrics"]["test/accuracy"]["mean"] == 1
    return root / "run"


@pytest.fixture(scope="module")
def told(workdir):
    return load_babi(workdir)


def test_answers_follow_the_story(told):
    question = "3 Where is Mary?\tgarden\t1"
    lines = ["Mary went to the garden.", "", question, "mary went to the kitchen", "where is mary?"]
    first, second = ask(*told, lines)
    assert [answer.answers[0][0] for answer in (first, second)] == ["garden", "kitchen"]
    assert first.question == "Where is Mary?"
    for answer in (first, second):
        assert sum(probability for _, probability in answer.answers) == pytest.approx(1, abs=1e-5)  # over both answers
        assert answer.answers[0][1] > 0.8
    # Only sentences before the question are compared with it.
    assert [text for _, _, text in first.sentences] == ["Mary went to the garden."]
    assert {number for _, number, _ in second.sentences} == {1, 2}
    assert [alike for alike, _, _ in second.sentences] == sorted((s[0] for s in second.sentences), reverse=True)


def test_a_question_does_not_change_the_story(told):
    story = ["Mary went to the garden.", "Mary went to the kitchen.", "Where is Mary?"]
    asked_before = ask(*told, [story[0], "Where is Mary?", *story[1:]])[-1]
    (alone,) = ask(*told, story)
    np.testing.assert_allclose(
        [p for _, p in asked_before.answers], [p for _, p in alone.answers], rtol=1e-4, atol=1e-6
    )
    assert asked_before.answers[0][0] == alone.answers[0][0]


def test_the_text_of_an_answer(told):
    (answer,) = ask(*told, ["Mary went to the garden.", "Where is Mary?"])
    lines = format_answer(answer).splitlines()
    assert lines[0] == "? Where is Mary?" and lines[1].startswith("= garden ") and "%" in lines[1]
    assert lines[2].endswith("1 Mary went to the garden.")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["Mary went to the garden."], "the story has no question: end a line with a question mark"),
        (["Mary flew to the garden.", "Where is Mary?"], "the word 'flew' in 'mary flew to the garden' is not in"),
        (["to " * 12, "Where is Mary?"], "a sentence of 12 words, 1 to 11 can be encoded"),
        (["?"], "a sentence of 0 words"),
    ],
)
def test_what_cannot_be_understood_is_named(told, lines, message):
    with pytest.raises(ValueError, match=message):
        ask(*told, lines)


def test_another_folder_of_data_takes_the_place_of_the_one_in_the_config(workdir, tmp_path):
    moved = tmp_path / "run"
    shutil.copytree(workdir, moved)
    data, config = workdir.parent / "data", json.loads((moved / "config.json").read_text())
    config["task"]["data_dir"] = str(tmp_path / "nowhere")
    (moved / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match="no bAbI data in .*nowhere"):
        load_babi(moved)
    assert ask(*load_babi(moved, data_dir=str(data)), ["Mary went to the garden.", "Where is Mary?"])
    assert evaluate_run(moved, str(data))[0]["test/accuracy"] == 1
    pytest.importorskip("safetensors")
    assert all(path.stat().st_size for path in export_run(moved, tmp_path / "out", data_dir=str(data)))


@pytest.mark.usefixtures("blank_figures")
def test_a_report_reads_the_data_from_another_folder(workdir, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    moved = tmp_path / "run"
    shutil.copytree(workdir, moved)
    config = json.loads((moved / "config.json").read_text())
    config["task"]["data_dir"] = str(tmp_path / "nowhere")
    (moved / "config.json").write_text(json.dumps(config))
    maps = moved / "figures"
    shutil.rmtree(maps, ignore_errors=True)
    report_run(moved)
    assert "no memory map" in capsys.readouterr().err and not list(maps.glob("memory_map*"))
    report_run(moved, str(workdir.parent / "data"))
    assert not capsys.readouterr().err and list(maps.glob("memory_map*"))


def test_a_seed_or_a_run_that_is_not_there(workdir, tmp_path):
    with pytest.raises(ValueError, match="seed must be from 0 to 0 in .*, got seed=1"):
        load_babi(workdir, seed=1)
    with pytest.raises(FileNotFoundError, match="no run in"):
        load_babi(tmp_path)
