"""Loads the trained model of a run, runs one sequence and draws its memory: the paper's figure 5.

Run it with `python -m examples.load_and_plot [RUN]`; RUN is the folder of a run, such as `runs/first`; by default
the trained model in `results/pretrained`.
"""

import pathlib
import sys

import jax
import numpy as np
from matplotlib.figure import Figure

from launch.runs.load import load_trained
from mnm_jax.analysis import MemoryMaps, memory_maps

SHIPPED = pathlib.Path(__file__).parents[1] / "results/pretrained/dictionary"


def plot(run: str | pathlib.Path = SHIPPED, picture: str = "memory_map.png") -> tuple[str, MemoryMaps]:
    """Draws which write each read resembles; returns the sequence as text, and the maps `[T, T]`."""
    task, model = load_trained(run)
    batch = task.sample(jax.random.key(0), 1)
    output = model(batch.inputs, **batch.flags)
    trace = jax.tree.map(lambda leaf: np.asarray(leaf[:, 0]), output.cell.trace)
    maps = memory_maps(trace, read_first=getattr(model.cell, "read_first", False))
    figure = Figure(figsize=(11, 5), layout="constrained")
    tokens = task.tokens(batch, 0)
    for axis, (name, similarity) in zip(figure.subplots(1, 2), maps._asdict().items(), strict=True):
        axis.imshow(similarity, cmap="RdBu_r", vmin=-1, vmax=1)
        axis.set_xticks(range(len(tokens)), tokens)
        axis.set_yticks(range(len(tokens)), tokens)
        axis.set(title=f"cosine similarity of {name}", xlabel="written at step", ylabel="read at step")
    figure.savefig(picture)
    return task.render(batch, 0), maps


if __name__ == "__main__":
    text, maps = plot(*sys.argv[1:2])
    print(text)
