"""Tests the placeholders that a text fills with numbers of runs and files."""

import json

import pytest

from launch.reporting.placeholders import Section, fill
from launch.runs.finished import find_runs


@pytest.fixture
def section(tmp_path, write_run, metric):
    tasks = {f"test/task={number}/error": metric(*errors) for number, errors in ((1, (0.0, 0.04)), (2, (0.2, 0.1)))}
    write_run(tmp_path / "g/a", accuracy=(0.5, 1.0), metrics={"test/accuracy": metric(0.5, 1.0), **tasks})
    write_run(tmp_path / "g/b", "lstm", accuracy=(0.25,), validation=[(10, 0.125)])
    rows = [{"form": "auto", "memory": "two layers", "ms": 2.0}, {"form": "auto", "memory": "one", "ms": 3.0}]
    (tmp_path / "step.json").write_text(json.dumps({"rows": [*rows, {"form": "plain", "memory": "one", "ms": 8.0}]}))
    lines = [{"trial": "t0", "error": {"10": 40.0}}, {"trial": "t1", "settings": {"model.layers": 2, "rule": "local"}}]
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Section(tmp_path, {run.place: run for run in find_runs(tmp_path)[0]})


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{{g/a: test/accuracy}}", "0.7500 ± 0.3536"),  # sqrt(2) / 4
        ("{{g/b: test/accuracy}}", "0.2500"),
        ("{{g/a: test/accuracy | .1%}}", "75.0% ± 35.4%"),
        ("{{g/a: test/accuracy | min}} to {{g/a: test/accuracy | max .2f}}", "0.5000 to 1.00"),
        ("{{g/a: test/accuracy | above 0.5}} and {{g/a: test/accuracy | above 0.4}}", "1 of 2 and 2 of 2"),
        ("{{g/a: test/task=*/error | above 5%}}", "2 of 4"),
        ("{{g/a: test/task=*/error | mean .1%}}", "8.5%"),
        ("{{g/a - g/b: test/accuracy | .0%}}", "50%"),
        ("{{g/a / g/b: test/accuracy | .1f}}", "3.0"),
        ("{{g/a: updates}} {{g/a: parameters}} {{g/a: worst seed}}", "2,000 23,118 0.5000"),
        ("{{g/b: valid/accuracy at 10}}", "0.1250"),
        ("{{step.json form=auto: ms | max .0f}}", "3"),
        ("{{step.json form=auto memory=two_layers:\n  ms | .1f}}", "2.0"),
        ("{{trials.jsonl trial=t0: error.10 | .1f}}", "40.0"),
        ("{{trials.jsonl trial=t1: settings.model.layers | .0f}}", "2"),
        ("{{trials.jsonl trial=t1: settings.rule}}", "local"),
        ("{not one} {{", "{not one} {{"),
    ],
)
def test_a_number_of_a_run_or_of_a_file(section, text, filled):
    assert fill(text, section) == filled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{g/c: test/accuracy}}", r"fill \{\{g/c: test/accuracy\}\}: there is no run 'g/c'; there are g/a, g/b"),
        ("{{g/a: test/reward}}", "g/a has no metric test/reward; it has test/accuracy"),
        ("{{g/a}}", r"a placeholder is \{\{SOURCE: FIELD\}\}"),
        ("{{g/b: valid/accuracy at 11}}", "the curve of g/b has no valid/accuracy at 11"),
        ("{{g/a: test/accuracy | median .1f}}", "'median .1f' is no format"),
        ("{{other.json form=auto: ms}}", "there is no file other.json"),
        ("{{step.json form=fast: ms}}", "no row of step.json has form=fast"),
        ("{{step.json form=auto: seconds}}", "no key 'seconds'; there are form, memory, ms"),
        ("{{table step.json form=auto: ms}}", "a benchmark table has no column ms"),
    ],
)
def test_what_cannot_be_filled_is_named(section, text, message):
    with pytest.raises(ValueError, match=message):
        fill(text, section)


def test_a_metric_that_is_not_finite_fills_no_text(tmp_path, write_run):
    metrics = {"test/accuracy": {"mean": None, "std": None, "per_seed": [1.0, None]}}
    write_run(tmp_path / "a", metrics=metrics)
    section = Section(tmp_path, {run.place: run for run in find_runs(tmp_path)[0]})
    with pytest.raises(ValueError, match="test/accuracy of a is not finite"):
        fill("{{a: test/accuracy | mean}}", section)
