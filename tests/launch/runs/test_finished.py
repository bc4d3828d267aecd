"""Tests reading finished runs: joined seeds, and the light form of a folder of runs."""

import json
import shutil

import numpy as np
import pytest

from launch.reporting.table import by_test_set, comparison_rows
from launch.runs.finished import find_runs, join_seeds, publish_runs
from mnm_jax.analysis import learning_curve


@pytest.fixture
def of_seed(write_run):
    def write(folder, seed, *accuracies, steps=2000, **options):
        config = {
            "task": {"name": "dictionary"},
            "model": {"name": "mnm-p"},
            "training": {"seed": seed, "steps": steps},
        }
        write_run(folder, accuracy=accuracies, config=config, **options)

    return write


def test_linked_runs_are_found_once_and_links_may_form_a_circle(tmp_path, of_seed):
    of_seed(tmp_path / "disk" / "one", 0, 0.5, validation=[(10, 0.2)])
    root = tmp_path / "runs"
    (root / "group").mkdir(parents=True)
    of_seed(root / "group" / "two", 0, 0.5, validation=[(10, 0.2)])
    (root / "group" / "linked").symlink_to(tmp_path / "disk" / "one")
    (root / "group" / "latest").symlink_to(root / "group" / "two")
    (root / "group" / "up").symlink_to(root)
    (tmp_path / "disk" / "back").symlink_to(root)
    (root / "zall").symlink_to(tmp_path / "disk")
    runs, notes = find_runs(root)
    assert [run.place for run in runs] == ["group/linked", "group/two"] and not notes


def test_runs_that_differ_in_their_seed_alone_are_one_run(tmp_path, of_seed, metric):
    of_seed(tmp_path / "g" / "ours" / "seed_0", 0, 0.5, 0.75, validation=[(10, 0.2, 0.95), (20, 0.9, 1.0)])
    of_seed(tmp_path / "g" / "ours" / "seed_2", 2, 1.0, validation=[(10, 0.9), (20, 1.0), (30, 1.0)])
    of_seed(tmp_path / "g" / "other", 0, 0.5, validation=[(10, 0.2)])
    runs, _ = find_runs(tmp_path)
    other, ours = join_seeds(runs, tmp_path)
    assert (other, ours.group, ours.label) == (runs[0], "g", "ours")
    assert ours.summary["metrics"]["test/accuracy"] == metric(0.5, 0.75, 1.0)
    assert (ours.summary["seeds"], ours.summary["seconds"]) == (3, 2 * 1234.5)
    lines = [{"step": line["step"], "valid/accuracy": line["valid/accuracy"]} for line in ours.lines]
    assert lines == [{"step": 10, "valid/accuracy": [0.2, 0.95, 0.9]}, {"step": 20, "valid/accuracy": [0.9, 1.0, 1.0]}]
    assert [(row["group"], row["model"], row["seeds"]) for row in comparison_rows([other, ours])] == [
        ("g", "other (mnm-p)", "1"),
        ("g", "ours (mnm-p)", "3"),
    ]


def test_the_last_validation_of_seeds_that_are_joined_outlasts_the_test_of_the_same_update(tmp_path, of_seed):
    for seed in (0, 1):
        folder = tmp_path / "g" / "ours" / f"seed_{seed}"
        of_seed(folder, seed, 0.5, validation=[(10, 0.2), (20, 0.9)])
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 20, "seconds": 2.0, "test/accuracy": [0.8]}) + "\n")
    (ours,) = join_seeds(find_runs(tmp_path)[0], tmp_path)
    assert ours.lines[-1]["valid/accuracy"] == [0.9, 0.9] and ours.lines[-1]["test/accuracy"] == [0.8, 0.8]


def test_runs_of_other_settings_or_without_a_config_stay_apart(tmp_path, of_seed, write_run):
    of_seed(tmp_path / "g" / "a", 0, 0.5, validation=[(10, 0.2)])
    of_seed(tmp_path / "g" / "b", 1, 0.5, validation=[(10, 0.2)], steps=100)
    write_run(tmp_path / "g" / "c")
    write_run(tmp_path / "g" / "d")
    of_seed(tmp_path / "e", 0, 0.5, validation=[(10, 0.2)])
    of_seed(tmp_path / "f", 1, 0.5, validation=[(10, 0.2)])  # directly in the folder of runs, so not joined
    runs, _ = find_runs(tmp_path)
    assert join_seeds(runs, tmp_path) == runs


def _earlier(until, **settings):
    config = {"task": {"name": "dictionary", "data_dir": f"/of/{settings['seed']}"}, "training": settings}
    return {"earlier_configs": [{"until": until, "config": config}]}


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        ({}, {"continued_at": [1000]}, False),
        ({"continued_at": [1500]}, {"continued_at": [1000]}, False),
        ({"continued_at": [1000]}, {"continued_at": [1000]}, True),
        ({}, _earlier(100, seed=1, learning_rate=0.3), False),
        (_earlier(100, seed=0, learning_rate=0.2), _earlier(100, seed=1, learning_rate=0.3), False),
        (_earlier(100, seed=0, learning_rate=0.3), _earlier(100, seed=1, learning_rate=0.3), True),
        ({}, _earlier(0, seed=1, learning_rate=0.3), True),  # no update was made with that rate
    ],
)
def test_seeds_that_were_continued_in_other_ways_stay_apart(tmp_path, of_seed, first, second, joined):
    for seed, history in enumerate((first, second)):
        of_seed(tmp_path / "g" / "ours" / f"seed_{seed}", seed, 0.5, validation=[(10, 0.2)], **history)
    found = [run.place for run in join_seeds(find_runs(tmp_path)[0], tmp_path)]
    assert found == (["g/ours"] if joined else ["g/ours/seed_0", "g/ours/seed_1"])


def test_runs_with_a_seed_in_common_and_families_of_one_folder_stay_apart(tmp_path, of_seed):
    of_seed(tmp_path / "sweep" / "recipe", 0, 0.5, validation=[(10, 0.2)])
    of_seed(tmp_path / "sweep" / "rate=0.1", 0, 0.5, validation=[(10, 0.2)])  # the recipe's own rate
    for name, seed, steps in (("a", 0, 10), ("b", 1, 10), ("c", 0, 20), ("d", 1, 20)):
        of_seed(tmp_path / "two" / name, seed, 0.5, validation=[(10, 0.2)], steps=steps)
    runs, _ = find_runs(tmp_path)
    assert len(runs) == 6 and join_seeds(runs, tmp_path) == runs


def tables(root):
    runs = join_seeds(find_runs(root)[0], root)
    return comparison_rows(runs), [by_test_set(run.summary) for run in runs]


def test_the_light_form_gives_the_tables_and_curves_of_the_runs(tmp_path, of_seed, write_run):
    full, light = tmp_path / "runs", tmp_path / "results"
    exact = (0.1 + 0.2, 1 / 3)  # values without a short decimal form
    of_seed(full / "g" / "ours" / "seed_0", 0, *exact, validation=[(10, 0.2, 2 / 3), (20, 0.9, 1 / 7)])
    of_seed(full / "g" / "ours" / "seed_2", 2, 0.15375, validation=[(10, 0.1), (20, 1.0), (30, 1.0)])
    write_run(full / "h" / "lstm", "lstm", (0.2, 0.3, float(np.nextafter(0.25, 0))))
    assert publish_runs(full, light) == ["g/ours/seed_0", "g/ours/seed_2", "h/lstm"]
    assert tables(light) == tables(full)
    assert sorted(path.name for path in light.iterdir()) == ["curves.jsonl", "summaries.jsonl"]
    for one, other in zip(find_runs(light)[0], find_runs(full)[0], strict=True):
        assert {**one.summary, "metrics": None} == {**other.summary, "metrics": None}
        assert one.summary["metrics"].keys() == other.summary["metrics"].keys() - {"test/loss"}
        curves = [learning_curve(run.lines, "valid/accuracy") for run in (one, other)]
        np.testing.assert_allclose(curves[0].mean, curves[1].mean, rtol=1e-6)
        assert curves[0].steps.tolist() == curves[1].steps.tolist()
        assert one.lines[-1]["valid/chance"] == other.lines[-1]["valid/chance"]


def test_losses_are_kept_where_there_is_nothing_else(tmp_path, write_run, metric):
    write_run(tmp_path / "runs/a", metrics={"test/loss": metric(2.0)})
    lines = [{"step": 5, "train/loss": [3.0], "train/grad_norm": [1.0]}, {"step": 5, "valid/loss": [2.5]}]
    (tmp_path / "runs/a/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    publish_runs(tmp_path / "runs", tmp_path / "light")
    ((run,), _) = find_runs(tmp_path / "light")
    assert run.summary["metrics"] == {"test/loss": metric(2.0)}
    assert run.lines == [{"step": 5, "valid/loss": [2.5]}]


def test_the_light_form_has_no_path_of_a_machine_and_the_rest_of_the_config(tmp_path, write_run):
    places = {"data_dir": "/somewhere/babi", "cache_dir": "/somewhere/cache"}
    config = {"task": {"name": "babi", "size": "1k"} | places, "training": {"steps": 3}, "folder": "/somewhere/project"}
    earlier = [{"until": 2, "config": config}]
    command = "python -m launch.train '--config.task.data_dir=/somewhere/babi' --config.task.size=1k"
    write_run(tmp_path / "runs/g/a", config=config, earlier_configs=earlier, command=command)
    write_run(tmp_path / "runs/g/b")  # of a summary without a config
    publish_runs(tmp_path / "runs", tmp_path / "light")
    text = (tmp_path / "light/summaries.jsonl").read_text()
    assert not any(place in text for place in (*places.values(), "/somewhere/project"))
    (first, second), _ = find_runs(tmp_path / "light")
    light = {"task": {"name": "babi", "size": "1k"}, "training": {"steps": 3}}
    assert first.summary["command"] == "python -m launch.train --config.task.size=1k"
    assert first.summary["config"] == light and first.summary["earlier_configs"] == [{"until": 2, "config": light}]
    assert "config" not in second.summary
    assert json.loads((tmp_path / "runs/g/a/summary.json").read_text())["config"] == config


def test_a_run_is_published_again_and_the_others_stay(tmp_path, write_run):
    write_run(tmp_path / "first/g/a")
    write_run(tmp_path / "first/g/b", "lstm")
    write_run(tmp_path / "second/g/a", accuracy=(1.0, 1.0, 1.0))
    light = tmp_path / "light"
    publish_runs(tmp_path / "first", light)
    publish_runs(tmp_path / "second", light)
    runs = {run.place: run.summary["metrics"]["test/accuracy"]["mean"] for run in find_runs(light)[0]}
    assert runs == {"g/a": 1.0, "g/b": 0.75}


def test_runs_published_into_their_own_folder_are_published_again_after_more_updates(tmp_path, write_run):
    for name in ("trained", "shipped"):
        write_run(tmp_path / "g" / name)
    publish_runs(tmp_path, tmp_path)
    for name in ("trained", "shipped"):
        shutil.rmtree(tmp_path / "g" / name)
        write_run(tmp_path / "g" / name, accuracy=(1.0,), validation=[(5000, 1.0)], steps=5000)
    (tmp_path / "g/shipped/metrics.jsonl").unlink()  # its curve is in the light form only
    assert publish_runs(tmp_path, tmp_path) == ["g/shipped", "g/trained"]
    shipped, trained = find_runs(tmp_path)[0]
    assert (shipped.summary["steps"], [line["step"] for line in shipped.lines]) == (2000, [10, 20])
    assert (trained.summary["steps"], [line["step"] for line in trained.lines]) == (5000, [5000])
    assert trained.summary["metrics"]["test/accuracy"]["per_seed"] == [1.0]


def test_nothing_is_published_of_runs_that_are_damaged_or_not_there(tmp_path, write_run):
    with pytest.raises(FileNotFoundError, match="no finished run in"):
        publish_runs(tmp_path / "nowhere", tmp_path / "light")
    write_run(tmp_path / "runs/a")
    (tmp_path / "runs/b").mkdir()
    (tmp_path / "runs/b/config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"cannot publish .*runs: .*b is not finished"):
        publish_runs(tmp_path / "runs", tmp_path / "light")
    assert not (tmp_path / "light").exists()


@pytest.mark.parametrize("name", ["summaries.jsonl", "curves.jsonl"])
@pytest.mark.parametrize("damage", ["", "[]", '{"run": "g/b"', '{"run": "g/b", "step": [1], "metrics": []}'])
def test_a_damaged_line_of_the_light_form_is_named(tmp_path, write_run, name, damage):
    write_run(tmp_path / "runs/g/a")
    publish_runs(tmp_path / "runs", tmp_path / "light")
    if name == "curves.jsonl" and '"metrics"' in damage:
        damage = '{"run": "g/b", "step": [1], "valid/accuracy": []}'
    path = tmp_path / "light" / name
    path.write_text(f"{path.read_text()}{damage}\n")
    with pytest.raises(ValueError, match=rf"{name}, line 2 is damaged"):
        find_runs(tmp_path / "light")


def test_a_summary_of_the_light_form_lacks_nothing(tmp_path, write_run):
    write_run(tmp_path / "runs/g/a")
    publish_runs(tmp_path / "runs", tmp_path / "light")
    path = tmp_path / "light/summaries.jsonl"
    path.write_text(path.read_text().replace('"command"', '"order"'))
    with pytest.raises(ValueError, match="the run g/a lacks command"):
        find_runs(tmp_path / "light")


def test_a_full_run_beside_the_light_form_is_found_and_one_with_its_parameters_counts_once(tmp_path, write_run):
    write_run(tmp_path / "runs/g/a")
    light = tmp_path / "light"
    publish_runs(tmp_path / "runs", light)
    write_run(light / "g/a", accuracy=(0.0,), validation=[(10, 0.2)])  # shipped with its parameters
    write_run(light / "g/new", "lstm")
    (light / "g/half").mkdir()
    (light / "g/half/config.json").write_text("{}")
    runs, notes = find_runs(light)
    assert [(run.place, run.summary["metrics"]["test/accuracy"]["mean"]) for run in runs] == [
        ("g/a", 0.75),
        ("g/new", 0.75),
    ]
    assert len(notes) == 1 and "g/half is not finished" in notes[0]
