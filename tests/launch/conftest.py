"""Fixtures that write the files of finished runs, and that inspect pictures and folders."""

import contextlib
import json
import pathlib

import numpy as np
import pytest
from matplotlib import image


def _metric(*per_seed):
    values = np.array(per_seed)
    std = values.std(ddof=1) if len(values) > 1 else 0.0
    return {"mean": values.mean(), "std": std, "per_seed": list(per_seed)}


def _write_run(
    folder, model="mnm-p", accuracy=(0.5, 0.75, 1.0), validation=((10, 0.2, 0.95, 0.9), (20, 0.9, 1.0, 1.0)), **more
):
    folder.mkdir(parents=True)
    summary = {
        "task": "dictionary",
        "model": model,
        "seeds": len(accuracy),
        "steps": 2000,
        "seconds": 1234.5,
        "command": f"/somewhere/bin/python3.11 -m launch.train --config=c.py:{model} '--workdir=/tmp/a b' --config.x=1",
        "parameters": 23118,
        "metrics": {
            "test/accuracy": _metric(*accuracy),
            "test/chance": _metric(0.25),
            "test/support=16/accuracy": _metric(*(value / 2 for value in accuracy)),
            "test/support=8/accuracy": _metric(*accuracy),
            "test/support=8/chance": _metric(0.125),
            "test/loss": _metric(1.0),
        },
        **more,
    }
    (folder / "config.json").write_text("{}")
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [{"step": step, "seconds": 1.0, "valid/accuracy": values} for step, *values in validation]
    lines[-1]["valid/chance"] = [0.25] * len(accuracy)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return summary, lines


def _pixels(path):
    """Returns the colours 0xRRGGBB of a picture without its legend; checks that it is wide and not blank."""
    red, green, blue = np.moveaxis(np.round(255 * image.imread(path)[..., :3]).astype(np.int32), -1, 0)
    picture = (red << 16) + (green << 8) + blue
    assert 800 < picture.shape[1] < 1250
    assert len(np.unique(picture)) > 10
    return picture[: 3 * len(picture) // 4]


def _count(picture, colour):
    return int(np.sum(picture == int(colour.removeprefix("#"), 16)))


def _blank(figure, path):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


@contextlib.contextmanager
def _without_drawing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("launch.reporting.figures.save_figure", _blank)
        yield


def _contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def metric():
    return _metric


@pytest.fixture
def write_run():
    """Writes the files of a finished run into a new folder; returns its summary and the lines of its metrics."""
    return _write_run


@pytest.fixture
def pixels():
    return _pixels


@pytest.fixture
def count():
    return _count


@pytest.fixture
def contents():
    return _contents


@pytest.fixture(scope="session")
def without_drawing():
    """A context in which pictures are empty files: drawing takes most of the time of a report."""
    return _without_drawing


@pytest.fixture
def blank_figures():
    with _without_drawing():
        yield
