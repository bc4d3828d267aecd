"""Tests the language models of the examples: equal sizes, causality, carried states, and texts without overlap."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.language_model import __main__ as program
from examples.language_model import text
from examples.language_model.model import MODELS, LanguageModel, count_parameters
from launch.reporting.table import compare
from launch.runs.finished import find_runs


def parameters(name, **options):
    def build():
        return LanguageModel(name, features=128, layers=2, steps=256, options=options, rngs=nnx.Rngs(0))

    return count_parameters(nnx.eval_shape(build))


def test_all_models_are_of_one_size():
    sizes = [parameters(name) for name in MODELS]
    sizes += [parameters("memory", output_gate=True), parameters("memory", heads=2, convolution=1)]
    assert max(sizes) < 1.01 * min(sizes)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_sees_what_was_and_not_what_comes(name):
    model = LanguageModel(name, features=16, layers=2, steps=9, rngs=nnx.Rngs(0))
    run = nnx.jit(lambda model, characters: model(None, characters)[1])
    characters = jax.random.randint(jax.random.key(0), (9, 2), 0, len(text.ALPHABET))
    changed = characters.at[5, 0].set((characters[5, 0] + 1) % len(text.ALPHABET))
    before, after = run(model, characters), run(model, changed)
    differs = np.abs(before - after).max(-1) > 1e-6
    assert not differs[:5].any() and not differs[:, 1].any()
    assert differs[5:, 0].all()


@pytest.mark.parametrize("name", ["lstm", "memory"])
def test_bits_in_windows_with_the_carried_state_are_those_of_one_pass(name):
    model = LanguageModel(name, features=8, layers=1, steps=4, shift=3, rngs=nnx.Rngs(0))
    model.layers[0].shift.kernel[...] = jnp.ones((2, 8))
    content = np.random.default_rng(0).integers(0, len(text.ALPHABET), 21)  # two parts of ten and a last character
    whole, _ = nnx.jit(program.bits)(model, None, np.stack([content[:11], content[10:]]))
    assert program.evaluate(model, content, batch=2, steps=4) == pytest.approx(float(whole.mean()), abs=1e-5)
    apart = program.evaluate(model, content, batch=2, steps=4, carries=False)
    assert abs(apart - float(whole.mean())) > 1e-3


def test_windows_of_training_follow_one_another_if_the_state_is_carried():
    content = np.arange(100)
    windows = program.draw(content, np.random.default_rng(0), batch=3, steps=9, carries=True)
    rows = [next(windows) for _ in range(20)]
    assert all((np.diff(row) == 1).all() and row.shape == (3, 10) for row in rows)
    steps = np.array([after[:, 0] - before[:, 0] for before, after in zip(rows, rows[1:], strict=False)])
    assert set(steps.ravel()) == {9, 9 - 91}  # after the last whole window the text begins again


def test_an_option_is_a_name_and_a_value():
    options = program.parse_options("memory", ["convolution=8", "output_gate=True", "key_norm='layer'"])
    assert options == {"convolution": 8, "output_gate": True, "key_norm": "layer"}
    with pytest.raises(ValueError, match="option must be NAME=VALUE with a Python value, got 'key_norm=l2'"):
        program.parse_options("memory", ["key_norm=l2"])
    with pytest.raises(ValueError, match="option must be one of .*'heads'.* for the model 'memory', got 'head'"):
        program.parse_options("memory", ["head=2"])
    with pytest.raises(ValueError, match=r"one of \[\] for the model 'lstm', got 'heads'"):
        program.parse_options("lstm", ["heads=2"])


def test_texts_are_docstrings_and_share_nothing(tmp_path):
    for index in range(10):
        (tmp_path / f"m{index}.py").write_text(
            f'"""File {index} of all."""\n\ndef f():\n    """The same in all: é."""\n'
        )
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left_out.py").write_text('"""Not this one."""')
    found = {name: text.decode(places) for name, places in text.load(tmp_path).items()}
    whole = "\n\n".join(found.values())
    assert all(f"File {index} of all." in whole for index in range(10))
    assert whole.count("The same in all: .") == 1 and "Not this" not in whole
    assert found["valid"] and found["test"] and len(found["train"]) > len(found["test"])


def test_bits_of_a_model_that_knows_nothing_are_those_of_the_alphabet():
    model = LanguageModel("lstm", features=16, layers=1, steps=4, rngs=nnx.Rngs(0))
    model.readout.kernel[...] *= 0
    windows = np.zeros((3, 5), np.uint8)
    bits, _ = nnx.jit(program.bits)(model, None, windows)
    assert float(bits.mean()) == pytest.approx(np.log2(len(text.ALPHABET)), rel=1e-5)


@pytest.mark.parametrize("name", ["lstm", pytest.param("memory", marks=pytest.mark.slow)])
def test_a_run_learns_and_is_reported(tmp_path, name):
    content = text.encode("abcdefgh" * 100)
    config = program.make_config(name, steps=8, updates=30, features=16, batch=8, seed=3)
    with jax.numpy_dtype_promotion("standard"):
        program.train(config, tmp_path / "runs" / name, dict.fromkeys(("train", "valid", "test"), content))
    ((run,), notes) = find_runs(tmp_path / "runs")
    assert not notes and run.lines[-1]["step"] == 30
    row = compare(run.summary, run.lines)
    assert float(row["bits per character"]) == pytest.approx(run.summary["metrics"]["test/bits"]["mean"], abs=1e-4)
    assert float(row["bits per character"]) < 5.5  # initially log2(96) = 6.6
    assert json.loads((tmp_path / "runs" / name / "config.json").read_text()) == config
    curve = (tmp_path / "runs" / name / "metrics.jsonl").read_bytes()
    again = program.train(config, tmp_path / "runs" / name, {})  # finished: nothing is read or written
    assert again == run.summary and (tmp_path / "runs" / name / "metrics.jsonl").read_bytes() == curve
    with pytest.raises(ValueError, match="holds a run of another config"):
        program.train(config | {"model": {"name": "transformer"}}, tmp_path / "runs" / name, {})
    assert jnp.isfinite(run.summary["metrics"]["valid/bits"]["mean"])
