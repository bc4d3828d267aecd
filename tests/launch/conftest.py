"""Fixtures that write the files of finished runs, and that inspect pictures, folders and listening sockets."""

import contextlib
import ipaddress
import json
import os
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


def _listening(*pids):
    """Returns the (IP address, port) pairs at which processes and their descendants listen; needs Linux's /proc."""
    parents = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    family = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    sockets = set()
    for pid in family:
        with contextlib.suppress(OSError):
            sockets |= {os.readlink(path) for path in pathlib.Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:  # 0A: listening
                address, port = fields[1].split(":")
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                ip = ipaddress.ip_address(b"".join(words))
                found.add((getattr(ip, "ipv4_mapped", None) or ip, int(port, 16)))
    return found


@pytest.fixture
def listening():
    if not pathlib.Path("/proc/net/tcp").exists():
        pytest.skip("needs /proc/net")
    return _listening


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
