"""Trains a character-level language model of Python's documentation strings: a neural memory, an LSTM, or attention.

    python -m examples.language_model --model=memory --workdir=runs/language/memory [--seed=0] [--steps=1500]
    python -m examples.language_model --smoke

The models differ in one layer and have the same number of parameters to within one per cent. A run writes
`config.json`, `metrics.jsonl` and `summary.json` into its folder; `python -m launch.report --workdir=runs` compares the
runs. The metric is bits per character over windows of T characters, each read with an empty memory.

Shape letters: `T` characters of a window, `B` windows, `N` characters of a text.
"""

import pathlib
import shlex
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from examples.language_model import text
from examples.language_model.model import MODELS, LanguageModel
from launch.command import one_line_errors, parse_flags
from launch.reporting.text_table import format_table
from launch.runs.metrics import summarise
from launch.runs.train import versions
from launch.runs.workdir import SUMMARY, claim, write_json
from mnm_jax.training import MetricWriter

Array = jax.Array
_LOG_EVERY = 50
_EVALUATE = {"valid": 64, "test": 256}  # number of windows: "valid" during training, "test" at the end


def bits(model: LanguageModel, windows: Array) -> Array:
    """Returns the mean bits per character of windows `[B, T + 1]`, given the earlier characters of the window."""
    characters = windows.T.astype(jnp.int32)
    nats = optax.softmax_cross_entropy_with_integer_labels(model(characters[:-1]), characters[1:])
    return jnp.mean(nats) / jnp.log(2.0)


def draw(content: np.ndarray, rng: np.random.Generator, batch: int, steps: int) -> np.ndarray:
    """Returns windows `[B, T + 1]` from random places of a text `[N]`."""
    starts = rng.integers(0, len(content) - steps, (batch, 1))
    return content[starts + np.arange(steps + 1)]


def evaluate(model: LanguageModel, content: np.ndarray, batch: int, steps: int, most: int) -> float:
    """Returns the bits per character of the first `most` consecutive windows of a text `[N]`."""
    count = min(most, (len(content) - 1) // steps) // batch * batch
    windows = np.stack([content[i * steps : (i + 1) * steps + 1] for i in range(count)])
    measure = nnx.jit(bits)
    return float(np.mean([measure(model, part) for part in np.split(windows, count // batch)]))


def train(config: dict[str, Any], workdir: pathlib.Path, texts: dict[str, np.ndarray]) -> dict[str, Any]:
    """Trains a model, writes the files of the run and returns the content of `summary.json`."""
    claim(workdir, config)
    training, steps = config["training"], config["task"]["steps"]
    updates, batch, seed = training["steps"], training["batch_size"], training["seed"]
    model = LanguageModel(**config["model"], steps=steps, rngs=nnx.Rngs(seed))
    schedule = optax.warmup_cosine_decay_schedule(0.0, training["learning_rate"], updates // 10, updates)
    adam = optax.chain(optax.clip_by_global_norm(training["clip_norm"]), optax.adamw(schedule, weight_decay=0.01))
    optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)

    @nnx.jit
    def update(model: LanguageModel, optimizer: nnx.Optimizer, windows: Array) -> Array:
        value, gradient = nnx.value_and_grad(bits)(model, windows)
        optimizer.update(model, gradient)
        return value

    rng, writer, begin = np.random.default_rng(seed), MetricWriter(workdir), time.perf_counter()
    for step in range(1, updates + 1):
        value = update(model, optimizer, draw(texts["train"], rng, batch, steps))
        if step % _LOG_EVERY == 0 or step == updates:
            valid = evaluate(model, texts["valid"], batch, steps, _EVALUATE["valid"])
            seconds = time.perf_counter() - begin
            writer.write(step, seconds, {"train/bits": np.array([value]), "valid/bits": np.array([valid])})
            print(f"step {step}/{updates}, {seconds:.0f} s: {value:.3f} bits in training, {valid:.3f} in validation")
    writer.close()
    test = evaluate(model, texts["test"], batch, steps, _EVALUATE["test"])
    summary = {
        "task": config["task"]["name"],
        "model": config["model"]["name"],
        "seeds": 1,
        "steps": updates,
        "seconds": time.perf_counter() - begin,
        "command": shlex.join(sys.orig_argv),
        "versions": versions(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
        "config": config,
        "metrics": summarise({"test/bits": np.array([test]), "valid/bits": np.array([valid])}),
    }
    write_json(workdir / SUMMARY, summary)
    print(format_table(summary["metrics"]))
    return summary


def make_config(model: str, *, steps: int, updates: int, features: int, batch: int, seed: int) -> dict[str, Any]:
    """Returns the config of a run; equal configs give equal runs."""
    return {
        "task": {"name": "docstrings", "steps": steps},
        "model": {"name": model, "features": features, "layers": 2},
        "training": {
            "steps": updates,
            "batch_size": batch,
            "learning_rate": 2e-3,
            "clip_norm": 1.0,
            "seed": seed,
        },
    }


def main(argv: list[str]) -> None:
    with one_line_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; name the model as --model=NAME.")
        sizes = {"steps": 256, "updates": _STEPS.value, "features": 128, "batch": 16}
        files = None
        if _SMOKE.value:
            sizes, files = {"steps": 16, "updates": 2, "features": 16, "batch": 2}, 40
        config = make_config(_MODEL.value, **sizes, seed=_SEED.value)
        train(config, pathlib.Path(_WORKDIR.value), text.load(most=files))


if __name__ == "__main__":
    _MODEL = flags.DEFINE_enum("model", "memory", MODELS, "Layer that mixes time steps.")
    _WORKDIR = flags.DEFINE_string("workdir", "runs/language/memory", "Folder of the run.")
    _STEPS = flags.DEFINE_integer("steps", 1500, "Updates.")
    _SEED = flags.DEFINE_integer("seed", 0, "Random seed.")
    _SMOKE = flags.DEFINE_bool("smoke", False, "Train tiny sizes, as a test.")
    app.run(main, flags_parser=parse_flags)
