"""Tests that damaged checkpoints and metrics are named, cost no number, and never become a poorer record."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest

from mnm_jax.training import init_state, load_params, read_metrics
from mnm_jax.training import restore_checkpoint as restore
from mnm_jax.training import save_checkpoint as save
from tests.faults.conftest import STEPS, contents, copy_of, damage
from tests.training.conftest import Model

DAMAGES = ("removed", "cut", "flipped", "emptied")


@pytest.fixture
def copies(reference, tmp_path):
    """Returns a function that makes a new copy of the finished run."""
    return lambda: copy_of(reference.folder, tmp_path / str(len(list(tmp_path.iterdir()))))


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_each_damaged_file_of_a_checkpoint_is_named_and_the_previous_one_is_used(reference, unfinished, every, caplog):
    files = [name for name in contents(unfinished) if name.startswith("checkpoints/3/") and not name.endswith("/")]
    assert {"checkpoints/3/files.json", "checkpoints/3/state/_METADATA"} <= set(files) and len(files) > 6
    cases = [(name, how) for name in files for how in DAMAGES if how != "emptied" or (unfinished / name).stat().st_size]
    for number, (name, how) in enumerate(cases[::every]):
        folder = copy_of(unfinished, unfinished.with_name(f"copy{number}"))
        damage(folder / name, how)
        caplog.clear()
        before = contents(folder)
        load_params(folder, Model)
        assert contents(folder) == before  # reading changes nothing
        reference.survives("damaged checkpoints", folder)
        message = f"Checkpoint {folder / 'checkpoints/3'} is damaged ({name.removeprefix('checkpoints/3/')} "
        assert any(message in line and "\n" not in line for line in caplog.messages), (name, how, caplog.messages)
        assert (folder / "checkpoints/3.damaged").exists()  # so that the run can save a checkpoint of this step again


@pytest.mark.parametrize("content", [b"{}", b"[]", b"null", b'{"step": 3, "files": {}}', b'{"step": 2, "files": []}'])
def test_a_list_of_files_that_lists_none_is_no_proof(reference, unfinished, content, caplog):
    (unfinished / "checkpoints/3/files.json").write_bytes(content)
    reference.survives("damaged checkpoints", unfinished)
    assert "checkpoints/3 is damaged (files.json " in caplog.text


def test_a_renamed_checkpoint_is_not_believed(reference, unfinished, caplog):
    (unfinished / "checkpoints/3").rename(unfinished / "checkpoints/4")
    reference.survives("damaged checkpoints", unfinished)
    assert "checkpoints/4 is damaged (files.json belongs to step 3)" in caplog.text


def test_a_list_of_files_of_an_earlier_version_is_believed(reference, unfinished, caplog):
    path = unfinished / "checkpoints/3/files.json"
    path.write_text(json.dumps(json.loads(path.read_text())["files"]))
    reference.survives("damaged checkpoints", unfinished)
    assert "damaged" not in caplog.text


METRICS = {
    "removed": lambda lines: None,
    "emptied": lambda lines: [],
    "cut in the middle": lambda lines: lines[:2],
    "without its first lines": lambda lines: lines[3:],
    "with a byte that is not UTF-8": lambda lines: [lines[0], lines[1].replace(b"loss", b"lo\xffs"), *lines[2:]],
    "with an empty number of updates": lambda lines: [*lines[:2], b'{"step": null}', *lines[3:]],
    "with a text as a metric": lambda lines: [*lines[:2], b'{"step": 2, "train/loss": "low"}', *lines[3:]],
    "with a line that is no object": lambda lines: [*lines[:2], b"[1, 2]", *lines[3:]],
    "cut inside of a character": lambda lines: [*lines, b'{"step": 2, "\xc3'],
}


@pytest.mark.parametrize("how", METRICS)
def test_the_record_of_a_run_is_restored_from_its_checkpoint(reference, unfinished, copies, how, caplog):
    for folder in (unfinished, copies()):
        path = folder / "metrics.jsonl"
        lines = METRICS[how](path.read_bytes().splitlines())
        if lines is None:
            path.unlink()
        else:
            path.write_bytes(b"\n".join(lines) + b"\n" * bool(lines))
        caplog.clear()
        readable = read_metrics(folder)  # as launch.report reads it
        assert len(readable) >= len(lines or ()) - 1
        if how.startswith("with ") or "inside" in how:
            assert f"{path}, line " in caplog.text and "cannot be read and is left out" in caplog.text
        reference.survives("damaged metrics", folder)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(copies):
    folder = copies()
    for path in (folder / "checkpoints").glob("*/files.json"):
        path.unlink()
    with pytest.raises(ValueError, match=rf"no complete checkpoint in .*: {STEPS} is damaged .* is missing") as caught:
        load_params(folder, Model)
    assert "\n" not in str(caught.value)


def test_a_program_that_reads_checkpoints_may_lose_the_race_with_the_one_that_removes_them(tmp_path, monkeypatch):
    state = init_state(Model, optax.sgd(0.1), 0, 1)
    for step in (1, 2):
        save(tmp_path, step, state, {"n": step})
    from mnm_jax.training import _checkpoints

    find_damage, folder = _checkpoints.find_damage, tmp_path / "checkpoints"

    def replaced_meanwhile(path, **content):
        if path.name == "2" and (folder / "1").exists():
            shutil.copytree(folder / "2", folder / "copy")
            save(tmp_path, 3, state, {"n": 3})
            save(tmp_path, 4, state, {"n": 4})
        return find_damage(path, **content)

    monkeypatch.setattr(_checkpoints, "find_damage", replaced_meanwhile)
    assert restore(tmp_path, state).step == 4
    np.testing.assert_array_equal(*(jax.tree.leaves(tree)[0] for tree in (load_params(tmp_path, Model)[0], state)))
