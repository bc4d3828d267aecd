"""Tests figures of given curves and traces: colours, bands, chance levels, and errors."""

import numpy as np
import pytest
from PIL import Image

from launch.reporting import figures
from launch.reporting.png import with_palette
from launch.runs.registry import MODELS
from mnm_jax.cells import MemoryTrace


def test_every_model_has_a_colour_of_its_own_and_runs_of_one_model_a_line_of_their_own():
    colours = [model.colour for model in MODELS.values()]
    assert len(set(colours)) == len(colours)
    styles = figures._styles(
        [figures.Curve(name, model, []) for name, model in [("a", "lstm"), ("b", "lstm"), ("c", "x")]]
    )
    assert styles["a"]["color"] == styles["b"]["color"] == MODELS["lstm"].colour
    assert styles["a"]["linestyle"] != styles["b"]["linestyle"]
    assert styles["c"]["color"] not in colours


def test_chance_is_drawn_beside_accuracies_only():
    lines = [{"step": 1, "valid/accuracy": [0.5], "valid/chance": [level]} for level in (0.9, 0.25)]
    curves = [figures.Curve("a", "lstm", lines), figures.Curve("b", "lstm", [{"step": 1, "valid/accuracy": [0.5]}])]
    assert figures._chance_levels(curves, "valid/accuracy") == [0.25]
    assert figures._chance_levels(curves, "valid/loss") == []


def test_the_band_is_the_spread_over_seeds(tmp_path, pixels):
    pictures = []
    for spread in (0.0, 0.05, 0.1):
        lines = [{"step": step, "valid/accuracy": [0.5 - spread, 0.5 + spread]} for step in range(1, 41)]
        curve = figures.Curve("mnm-p", "mnm-p", lines)
        figures.learning_curves({"title": [curve]}, "valid/accuracy", tmp_path / "a.png")
        pictures.append(pixels(tmp_path / "a.png"))
    none, narrow, wide = pictures
    assert np.sum(narrow != none) > 10_000
    assert np.sum(wide != none) == pytest.approx(2 * np.sum(narrow != none), rel=0.1)


def test_wrong_figures_are_refused_and_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="no curve of valid/accuracy"):
        figures.learning_curves({"empty": []}, "valid/accuracy", tmp_path / "a.png")
    with pytest.raises(ValueError, match="no line holds the metric 'valid/loss'"):
        figures.learning_curves(
            {"one": [figures.Curve("a", "lstm", [{"step": 1, "x": [1.0]}])]}, "valid/loss", tmp_path / "a.png"
        )
    trace = MemoryTrace(*(np.ones((3, 1, 2)) for _ in range(4)), np.ones(3))
    with pytest.raises(ValueError, match="each of the 3 steps, got 2"):
        figures.memory_maps(trace, ["a", "b"], tmp_path / "a.png", "title")
    assert not list(tmp_path.iterdir())


def test_long_tokens_keep_their_ends():
    assert figures._shorten("mary moved to the bathroom") == "mary moved…the bathroom"
    assert figures._shorten("where is mary") == "where is mary"
    assert all(len(figures._shorten("x" * length)) == min(length, 24) for length in (23, 24, 25, 60))


def test_a_palette_keeps_frequent_colours_exactly_and_rare_ones_nearly():
    rng = np.random.default_rng(0)
    picture = np.full((200, 200, 3), 255, np.uint8)
    picture[:60] = (0, 114, 178)
    picture[100:160, :, :] = rng.integers(100, 180, (60, 200, 3))  # many colours, as from anti-aliased lines
    picture[199, :3] = (160, 10, 20)  # the rare end of a colour map
    reduced = np.asarray(with_palette(Image.fromarray(picture)).convert("RGB"))
    assert len(np.unique(reduced.reshape(-1, 3), axis=0)) <= 256
    assert (reduced[:100] == picture[:100]).all()
    difference = np.abs(reduced.astype(int) - picture)
    assert difference[199, :3].max() < 12 and difference.max() < 32
