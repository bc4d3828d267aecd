"""Tests RESULTS.md and the pages of sections, made from runs written by hand."""

import json

import pytest

from launch.reporting.pages import write_results
from launch.runs.finished import publish_runs
from launch.runs.registry import MODELS, TASKS

TEXT = """\
# Dictionary inference

The memory gets {{n=3, S=8/mnm-p: test/accuracy | mean .0%}}.

```
# a comment
[as](it.is)
```

## Sizes

![Curves](learning_curves.png), ![a](b.png), [paper](https://x.org), [above](#sizes)
"""
CLAIMS = """\
[[dictionary]]
claim = "Eight pairs"
anchor = "{{n=3, S=8/lstm: test/accuracy}}"
source = "LSTM"
ours = "{{n=3, S=8/mnm-p: test/accuracy}}"
run = "n=3, S=8/mnm-p"
"""


def cells(markdown, heading):
    """Returns the rows of the Markdown table whose first line starts with `heading`."""
    lines = markdown.split(f"| {heading}", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def results(tmp_path, write_run):
    results = tmp_path / "results"
    write_run(results / "dictionary/n=3, S=16/mnm-p")
    write_run(results / "dictionary/n=3, S=8/mnm-p")
    write_run(results / "dictionary/n=3, S=8/lstm", "lstm", (0.2, 0.2, 0.5))
    (results / "dictionary/README.md").write_text(TEXT)
    (results / "dictionary/b.png").write_bytes(b"a picture")
    (results / "claims.toml").write_text(CLAIMS)
    write_run(results / "babi/mnm-g", "mnm-g", (1.0,), [(5, 1.0)])
    return results


def write(results):
    """Writes the pages; returns the text of RESULTS.md, and of each section's page by its name."""
    overview, *pages = write_results(results)
    assert overview == results.parent / "RESULTS.md"
    assert {path.parent for path in pages} == {results.parent / "docs/results"}
    return overview.read_text(), {path.stem: path.read_text() for path in pages}


def test_the_pages_of_sections(results, capsys, pixels, count, contents):
    _, pages = write(results)
    dictionary, babi = pages["dictionary"], pages["babi"]
    assert "\n# Dictionary inference\n\nThe memory gets 75%.\n\n```\n# a comment\n[as](it.is)\n```\n" in dictionary
    assert "![a](../../results/dictionary/b.png), [paper](https://x.org), [above](#sizes)" in dictionary
    assert "\n# babi\n\n![Learning curves](../../results/babi/learning_curves.png)\n" in babi

    assert cells(dictionary, "group | model | seeds | updates | chance") == [
        ["n=3, S=8", "lstm", "3", "2,000", "0.2500", "0.3000 ± 0.1732", "0.2000", "13", "1,234", "23,118"],
        ["n=3, S=8", "mnm-p", "3", "2,000", "0.2500", "0.7500 ± 0.2500", "0.5000", "13", "1,234", "23,118"],
        ["n=3, S=16", "mnm-p", "3", "2,000", "0.2500", "0.7500 ± 0.2500", "0.5000", "13", "1,234", "23,118"],
    ]
    assert cells(dictionary, "group | model | support=8 | support=16") == [
        ["n=3, S=8", "lstm", "0.3000 ± 0.1732 (chance 0.1250)", "0.1500 ± 0.0866"],
        ["n=3, S=8", "mnm-p", "0.7500 ± 0.2500 (chance 0.1250)", "0.3750 ± 0.1250"],
        ["n=3, S=16", "mnm-p", "0.7500 ± 0.2500 (chance 0.1250)", "0.3750 ± 0.1250"],
    ]
    assert cells(babi, "model | seeds") == [
        ["mnm-g", "1", "2,000", "0.2500", "1.0000", "1.0000", "5", "1,234", "23,118"]
    ]
    assert "\n3 runs, 1.0 hours in sequence. " in dictionary
    formulas = {name: f"- {name}: `{registry[name].formula}`\n" for registry in (TASKS, MODELS) for name in registry}
    assert f"\n{formulas['dictionary']}{formulas['lstm']}{formulas['mnm-p']}\n" in dictionary
    assert "\n1 run, 0.3 hours in sequence. " in babi
    assert dictionary.index("learning_curves.png") < dictionary.index("| group") < dictionary.index("## Commands")
    # The three commands differ in the model only.
    commands = dictionary.split("```sh\n")[1].split("```")[0]
    assert commands == (
        "# n=3, S=8/lstm; n=3, S=8/mnm-p; n=3, S=16/mnm-p\n"
        "python -m launch.train --config=c.py:MODEL --config.x=1 --workdir=runs/dictionary/RUN\n"
    )
    assert not any(text in page for text in ("/somewhere", str(results), "/tmp/a") for page in (dictionary, babi))
    assert count(pixels(results / "dictionary/learning_curves.png"), MODELS["lstm"].colour) > 100
    assert capsys.readouterr().err == ""

    before = contents(results.parent)
    write_results(results)
    assert contents(results.parent) == before


@pytest.mark.usefixtures("blank_figures")
def test_many_runs_are_shown_by_model_and_group(results, monkeypatch):
    monkeypatch.setattr("launch.reporting.pages._RUNS", 2)
    dictionary = write(results)[1]["dictionary"]
    assert "| model | n=3, S=8 | n=3, S=16 |\n" in dictionary
    assert cells(dictionary, "model | n=3") == [
        ["lstm", "0.3000 ± 0.1732", "-"],
        ["mnm-p", "0.7500 ± 0.2500", "0.7500 ± 0.2500"],
    ]
    assert cells(dictionary, "group | runs | updates | chance | seconds") == [
        ["n=3, S=8", "2", "2,000", "0.2500", "2,469"],
        ["n=3, S=16", "1", "2,000", "0.2500", "1,234"],
    ]
    assert "support=8" not in dictionary
    assert "## Commands" in dictionary


@pytest.mark.usefixtures("blank_figures")
def test_results_page_has_a_row_per_claim(results):
    overview, _ = write(results)
    # Sections with claims come first, in the order of the claims.
    assert overview.index("## [Dictionary inference](docs/results/dictionary.md)") < overview.index(
        "## [babi](docs/results/babi.md)"
    )
    assert cells(overview, "claim | paper or anchor") == [
        [
            "Eight pairs",
            "0.3000 ± 0.1732 (LSTM)",
            "0.7500 ± 0.2500",
            "3",
            "`python -m launch.train --config=c.py:mnm-p '--workdir=runs/dictionary/n=3, S=8/mnm-p' --config.x=1`",
        ]
    ]


@pytest.mark.usefixtures("blank_figures")
def test_the_overview_has_the_words_of_its_own_folder_only(results):
    before, _ = write(results)
    assert not any(word in before for word in ("bAbI", "SALU", "plateau", "simulated"))
    (results / "README.md").write_text("\nOur *words*, see [a page](docs/results/babi.md).\n")
    first, second, rest = write(results)[0].partition("\n\nOur *words*, see [a page](docs/results/babi.md).\n\n## [")
    assert first.endswith(" from the beginning.") and f"{first}\n\n## [{rest}" == before and second


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("page", ["RESULTS.md", "docs/results/babi.md"])
def test_a_page_written_by_hand_is_not_replaced(results, contents, page):
    path = results.parent / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# Our results\n")
    before = contents(results.parent)
    with pytest.raises(ValueError, match=f"{page} was not written by launch.report, which would replace it; move it"):
        write_results(results)
    assert contents(results.parent) == before
    path.unlink()
    write(results)
    write(results)  # what the report has written, it replaces


def test_the_light_form_gives_the_same_pages(results):
    full = write(results)
    light = results.parent / "light" / "results"
    for section in ("dictionary", "babi"):
        publish_runs(results / section, light / section)
    (light / "claims.toml").write_text(CLAIMS)
    (light / "dictionary/README.md").write_text(TEXT)
    (light / "dictionary/b.png").write_bytes(b"a picture")
    assert write(light) == full
    for section in ("dictionary", "babi"):
        one, other = (folder / section / "learning_curves.png" for folder in (results, light))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.usefixtures("blank_figures")
def test_half_written_runs_are_named_and_left_as_they_are(results, capsys, write_run, contents):
    section = results / "dictionary"
    (section / "unfinished/a").mkdir(parents=True)
    (section / "unfinished/a/config.json").write_text("{}")
    for name, damaged in {"cut": '{"task": "dic', "list": "[]", "empty": "{}"}.items():
        write_run(section / "broken" / name)
        (section / "broken" / name / "summary.json").write_text(damaged)
    write_run(section / "silent/mnm-p")
    (section / "silent/mnm-p/metrics.jsonl").unlink()
    before = contents(section)

    _, pages = write(results)
    notes = [line.removeprefix("Left out: ") for line in pages["dictionary"].splitlines() if "Left out: " in line]
    assert [note.split(";")[0] for note in notes] == [
        "broken/cut/summary.json is damaged (no JSON object)",
        "broken/empty/summary.json lacks command, metrics, model, parameters, seconds, seeds, steps, task",
        "broken/list/summary.json is damaged (no JSON object)",
        "unfinished/a is not finished: it has no summary.json",
    ]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5
    assert "silent/mnm-p: not in the comparison: its metrics.jsonl has no valid/accuracy." in errors[-1]
    silent = [row for row in cells(pages["dictionary"], "group") if row[0] == "silent"]
    assert silent[0][5:8] == ["0.7500 ± 0.2500", "0.5000", "-"]
    after = contents(section)
    assert {path: after[path] for path in before} == before


@pytest.mark.usefixtures("blank_figures")
def test_damage_inside_a_run_names_the_run_and_keeps_the_old_pages(results, contents):
    write(results)
    before = contents(results.parent / "docs")
    path = results / "babi/mnm-g/summary.json"
    path.write_text(path.read_text().replace('"steps": 2000', '"steps": "many"'))
    with pytest.raises(ValueError, match="results/babi/mnm-g is damaged"):
        write_results(results)
    assert contents(results.parent / "docs") == before


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("dictionary/README.md", "S=8/mnm-p", "S=8/dnc", r"dictionary: cannot fill \{\{.*\}\}: there is no run"),
        ("dictionary/README.md", "b.png", "c.png", r"README.md shows c.png, which is neither there nor drawn"),
        ("claims.toml", "test/accuracy", "test/accurate", r"has no metric test/accurate; it has test/accuracy, "),
        ("claims.toml", 'run = "n=3, S=8/mnm-p"', 'run = "n=4"', "no run and no file of a benchmark 'n=4'"),
        ("claims.toml", 'run = "n=3, S=8/mnm-p"', 'run = "README.md"', "no file of a benchmark 'README.md'"),
        ("claims.toml", "[[dictionary]]", "[[maze]]", r"claims.toml: there is no section maze"),
        ("claims.toml", "run =", "ran =", r"a claim of dictionary \(Eight pairs\) lacks run"),
        ("claims.toml", "source =", "sauce =", r"a claim of dictionary \(Eight pairs\) has the unknown key sauce"),
        ("claims.toml", "claim =", "claim", r"claims.toml is damaged"),
    ],
)
def test_a_text_that_cannot_be_filled_is_an_error_and_keeps_the_old_pages(results, contents, file, old, new, message):
    write(results)
    before = contents(results.parent / "docs")
    path = results / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        write_results(results)
    assert contents(results.parent / "docs") == before


@pytest.mark.usefixtures("blank_figures")
def test_seeds_trained_apart_are_one_row_and_each_has_its_place(tmp_path, write_run):
    section = tmp_path / "results/section"
    for seed in range(2):
        config = {"task": {}, "model": {}, "training": {"seed": seed}}
        write_run(section / f"g/ours/seed_{seed}", accuracy=(seed / 2,), validation=[(10, 0.9)], config=config)
    write_run(section / "g/other", validation=[(10, 0.9, 0.9, 0.9)])
    (section / "README.md").write_text("# S\n\n{{g/ours: test/accuracy | max .1f}} {{g/ours/seed_0: accuracy}}\n")
    page = write(tmp_path / "results")[1]["section"]
    assert "# S\n\n0.5 0.0000\n" in page
    assert [row[:3] for row in cells(page, "group")] == [["g", "other (mnm-p)", "3"], ["g", "ours (mnm-p)", "2"]]
    assert "# g/other; g/ours/seed_0; g/ours/seed_1\n" in page


@pytest.mark.usefixtures("blank_figures")
def test_a_page_shows_the_first_commands_of_many(tmp_path, write_run):
    section = tmp_path / "results/section"
    for index in range(9):
        write_run(section / f"g/run{index}", command=f"python3 -m launch.train --config=c.py --config.y={index}")
    page = write(tmp_path / "results")[1]["section"]
    assert page.count("python -m launch.train") == 6
    assert "`results/section/summaries.jsonl` has the command" in page and "of the 3 settings" in page


@pytest.mark.usefixtures("blank_figures")
def test_a_page_names_the_runs_whose_program_is_not_known(tmp_path, write_run):
    section = tmp_path / "results/section"
    for index in range(5):
        write_run(section / f"g/old{index}")
    for name, commit in (("clean", "0123456789ab"), ("changed", "0123456789ab-dirty")):
        write_run(section / f"g/{name}")
        path = section / f"g/{name}/summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": commit}))
    page = " ".join(write(tmp_path / "results")[1]["section"].split())
    assert "Runs without a recorded commit: g/old0; g/old1; g/old2 and 2 more." in page
    assert "Runs of a program with uncommitted changes: g/changed." in page


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("given", [" --config.training.steps=2000", " --config.training.steps 2000", ""])
def test_a_run_that_was_continued_has_a_command_per_number_of_updates(tmp_path, write_run, given):
    command = f"python3 -m launch.train --config=c.py:lstm --workdir /tmp/runs/a --config.task.n -1{given}"
    write_run(tmp_path / "results/section/g/a", "lstm", command=command, continued_at=[500, 1000])
    claim = {"claim": "C", "anchor": "A", "ours": "O", "run": "g/a"}
    text = "[[section]]\n" + "".join(f'{key} = "{value}"\n' for key, value in claim.items())
    (tmp_path / "results/claims.toml").write_text(text)
    overview, pages = write(tmp_path / "results")
    ends = [f"--config.task.n=-1 --config.training.steps={steps}" for steps in (500, 1000, 2000)]
    commands = [f"python -m launch.train --config=c.py:lstm --workdir=runs/section/g/a {end}" for end in ends]
    assert cells(overview, "claim")[0][-1] == ", then ".join(f"`{command}`" for command in commands)
    patterns = [f"python -m launch.train --config=c.py:MODEL {end} --workdir=runs/section/RUN" for end in ends]
    assert "```sh\n# g/a\n" + "\n".join(patterns) + "\n```" in pages["section"]


@pytest.mark.usefixtures("blank_figures")
def test_the_place_of_a_run_in_a_command_is_not_taken_for_a_number(tmp_path, write_run):
    settings = "--config.task.variables=6 --config.training.steps=36"
    command = f"python3 -m launch.train --config=r.py:6 --workdir=/tmp/6 {settings}"
    write_run(tmp_path / "results/section/6", command=command)
    page = write(tmp_path / "results")[1]["section"]
    assert f"# 6\npython -m launch.train --config=r.py:RUN {settings} --workdir=runs/section/RUN\n" in page


@pytest.mark.usefixtures("blank_figures")
def test_a_section_without_a_finished_run(results):
    (results / "maze").mkdir()
    (results / ".hidden").mkdir()
    overview, pages = write(results)
    assert pages["maze"].endswith("# maze\n\nNo finished run yet.\n")
    assert overview.endswith("## [maze](docs/results/maze.md)\n") and set(pages) == {"babi", "dictionary", "maze"}


def test_figures_by_size_are_drawn_where_the_text_shows_them(tmp_path, write_run, metric):
    section = tmp_path / "results/section"
    metrics = {f"test/length={size}/accuracy": metric(0.5, 1.0) for size in (4, 8, 16)}
    write_run(section / "g/mnm-p", metrics=metrics)
    (section / "README.md").write_text("# S\n\n![By length](accuracy_by_length.png)\n")
    page = write(tmp_path / "results")[1]["section"]
    assert page.count("![") == 1 and "](../../results/section/accuracy_by_length.png)" in page
    assert [path.name for path in section.glob("*.png")] == ["accuracy_by_length.png"]
    (section / "README.md").write_text("# S\n\n![By depth](accuracy_by_depth.png)\n")
    with pytest.raises(ValueError, match="no test sets depth=N to draw"):
        write_results(tmp_path / "results")


def test_benchmarks_have_a_table_each_unless_the_text_has_them(tmp_path):
    section = tmp_path / "results/bench"
    section.mkdir(parents=True)
    row = {"form": "auto", "heads": 1, "milliseconds": 2.0}
    device = {"platform": "cpu", "kind": "some CPU", "devices": 2, "cores": 2}
    report = {"suite": "limit", "device": device, "versions": {"jax": "0"}, "environment": {}, "command": "python -m x"}
    for name in ("one", "two"):
        (section / f"{name}.json").write_text(json.dumps(report | {"rows": [row, row | {"form": "plain"}]}))
    page = write(tmp_path / "results")[1]["bench"]
    assert page.count("| auto | 1 | 2.0 |") == 2 and page.count("```sh\npython -m x\n```") == 2
    (section / "README.md").write_text("# B\n\n{{table one.json form=auto: form, milliseconds}}\n\nNot two.json.\n")
    page = write(tmp_path / "results")[1]["bench"]
    assert cells(page, "form | ms") == [["auto", "2.0"]] and page.count("| --- |") == 1
    assert "```sh\n# 2 x some CPU (2 cores); jax 0\npython -m x\n```" in page
