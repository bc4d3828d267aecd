"""Tests the language models of the examples: equal sizes, causality, and texts that share no string."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.language_model import __main__ as program
from examples.language_model import text
from examples.language_model.model import MODELS, LanguageModel
from launch.reporting.table import compare
from launch.runs.finished import find_runs


def parameters(name, features=128):
    model = nnx.eval_shape(lambda: LanguageModel(name, features=features, layers=2, steps=256, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_the_three_are_of_one_size():
    sizes = [parameters(name) for name in MODELS]
    assert max(sizes) < 1.01 * min(sizes)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_sees_what_was_and_not_what_comes(name):
    model = LanguageModel(name, features=16, layers=2, steps=9, rngs=nnx.Rngs(0))
    run = nnx.jit(lambda model, characters: model(characters))
    characters = jax.random.randint(jax.random.key(0), (9, 2), 0, len(text.ALPHABET))
    changed = characters.at[5, 0].set((characters[5, 0] + 1) % len(text.ALPHABET))
    before, after = run(model, characters), run(model, changed)
    differs = np.abs(before - after).max(-1) > 1e-6
    assert not differs[:5].any() and not differs[:, 1].any()
    assert differs[5:, 0].all()


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
    assert float(program.bits(model, windows)) == pytest.approx(np.log2(len(text.ALPHABET)), rel=1e-5)


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
    with pytest.raises(ValueError, match="holds a run of another config"):
        program.train(config | {"model": {"name": "transformer"}}, tmp_path / "runs" / name, {})
    assert jnp.isfinite(run.summary["metrics"]["valid/bits"]["mean"])
