"""Trains a character-level language model of Python's documentation strings: a neural memory, an LSTM, or attention.

    python -m examples.language_model --model=memory --workdir=runs/language/memory [--seed=0] [--steps=1500]
    python -m examples.language_model --smoke

The models differ in one layer and have the same number of parameters to within one per cent. A run writes
`config.json`, `metrics.jsonl` and `summary.json` into its folder; `python -m launch.report --workdir=runs` compares the
runs. The metrics are bits per character: `bits` of the first windows of T characters and `whole_bits` of all windows,
each read with an empty state (`bits` with the carried state if the run has `--carries`), and `carried_bits` of all
windows, each read with the state after the one before (attention, which has no state, sees its window only).

`--option=NAME=VALUE` changes an option of the memory layer (see `model.py`), as in `--option=output_gate=True`.

Shape letters: `T` characters of a window, `B` windows, `N` characters of a text.
"""

import ast
import inspect
import pathlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from examples.language_model import text
from examples.language_model.model import MODELS, LanguageModel, Memory, count_parameters
from launch.command import one_line_errors, parse_flags
from launch.reporting.text_table import format_table
from launch.runs.metrics import summarise
from launch.runs.versions import versions
from launch.runs.workdir import SUMMARY, claim, read_summary, write_json
from mnm_jax import NeuralMemoryLayer
from mnm_jax._files import lock_folder
from mnm_jax.training import MetricWriter

Array = jax.Array
_LOG_EVERY = 50
_WINDOWS = {"valid": 64, "test": 256}  # number of windows behind the metric `bits`


def bits(model: LanguageModel, carry: Any, windows: Array) -> tuple[Array, Any]:
    """Returns the bits of the characters of windows `[B, T + 1]` except the first, `[T, B]`, and the next carry."""
    characters = windows.T.astype(jnp.int32)
    carry, logits = model(carry, characters[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, characters[1:]) / jnp.log(2.0), carry


_measure = nnx.jit(bits)
_begin = nnx.jit(LanguageModel.initialize_carry, static_argnums=1)


def draw(content: np.ndarray, rng: np.random.Generator, batch: int, steps: int, carries: bool) -> Iterator[np.ndarray]:
    """Yields windows `[B, T + 1]` of a text `[N]`: at random places, or each where the one before ended (`carries`)."""
    starts = rng.integers(0, len(content) - steps, (batch, 1))
    while True:
        yield content[starts + np.arange(steps + 1)]
        if carries:
            starts = (starts + steps) % (len(content) - steps)
        else:
            starts = rng.integers(0, len(content) - steps, (batch, 1))


def evaluate(model: LanguageModel, content: np.ndarray, batch: int, steps: int, carries: bool = True) -> float:
    """Returns the bits per character of a text `[N]`, read as B equal parts in windows of T characters.

    With `carries` the state of the model passes from window to window; otherwise each begins with an empty state.
    """
    length = (len(content) - 1) // batch
    padded = np.pad(content, (0, steps))  # for the last windows; their bits do not depend on the padding
    start = carry = _begin(model, batch)
    total = 0.0
    for place in range(0, length, steps):
        window = padded[np.arange(batch)[:, None] * length + place + np.arange(steps + 1)]
        found, carry = _measure(model, carry if carries else start, window)
        total += float(jnp.sum(found[: length - place]))
    return total / (length * batch)


def train(config: dict[str, Any], workdir: pathlib.Path, texts: dict[str, np.ndarray]) -> dict[str, Any]:
    """Trains a model, writes the files of the run and returns the content of `summary.json`.

    A finished run of the same config is not trained again. An interrupted run starts again at its first
    update, since it has no checkpoints.
    """
    with lock_folder(workdir):
        claim(workdir, config)
        return read_summary(workdir) or _train(config, workdir, texts)


def _train(config: dict[str, Any], workdir: pathlib.Path, texts: dict[str, np.ndarray]) -> dict[str, Any]:
    training, steps = config["training"], config["task"]["steps"]
    updates, batch, seed = training["steps"], training["batch_size"], training["seed"]
    model = LanguageModel(**config["model"], steps=steps, rngs=nnx.Rngs(seed))
    schedule = optax.warmup_cosine_decay_schedule(0.0, training["learning_rate"], updates // 10, updates)
    adam = optax.chain(optax.clip_by_global_norm(training["clip_norm"]), optax.adamw(schedule, weight_decay=0.01))
    optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)

    @nnx.jit
    def update(model: LanguageModel, optimizer: nnx.Optimizer, carry: Any, windows: Array) -> tuple[Array, Any]:
        def loss(model: LanguageModel) -> tuple[Array, Any]:
            found, after = bits(model, carry, windows)
            return jnp.mean(found), after

        (value, after), gradient = nnx.value_and_grad(loss, has_aux=True)(model)
        optimizer.update(model, gradient)
        return value, after

    def measure(name: str) -> float:
        content = texts[name][: _WINDOWS[name] * steps + 1]
        return evaluate(model, content, batch, steps, carries=training["carries"])

    rng, writer, begin = np.random.default_rng(seed), MetricWriter(workdir), time.perf_counter()
    windows = draw(texts["train"], rng, batch, steps, training["carries"])
    carry = model.initialize_carry(batch) if training["carries"] else None
    for step in range(1, updates + 1):
        value, after = update(model, optimizer, carry, next(windows))
        carry = after if training["carries"] else None
        if step % _LOG_EVERY == 0 or step == updates:
            valid = measure("valid")
            seconds = time.perf_counter() - begin
            writer.write(step, seconds, {"train/bits": np.array([value]), "valid/bits": np.array([valid])})
            print(f"step {step}/{updates}, {seconds:.0f} s: {value:.3f} bits in training, {valid:.3f} in validation")
    writer.close()
    metrics = {f"{name}/bits": np.array([measure(name)]) for name in ("valid", "test")}
    for name in ("valid", "test"):
        for label, carries in (("whole", False), ("carried", True)):
            metrics[f"{name}/{label}_bits"] = np.array([evaluate(model, texts[name], batch, steps, carries)])
    summary = {
        "task": config["task"]["name"],
        "model": config["model"]["name"],
        "seeds": 1,
        "steps": updates,
        "seconds": time.perf_counter() - begin,
        "command": shlex.join(sys.orig_argv),
        "versions": versions(),
        "parameters": count_parameters(model),
        "config": config,
        "metrics": summarise(metrics),
    }
    write_json(workdir / SUMMARY, summary)
    return summary


def make_config(
    model: str,
    *,
    steps: int,
    updates: int,
    features: int,
    batch: int,
    seed: int,
    learning_rate: float = 2e-3,
    carries: bool = False,
    shift: int = 1,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the config of a run; equal configs give equal runs."""
    return {
        "task": {"name": "docstrings", "steps": steps},
        "model": {"name": model, "features": features, "layers": 2, "shift": shift, "options": options or {}},
        "training": {
            "steps": updates,
            "batch_size": batch,
            "learning_rate": learning_rate,
            "clip_norm": 1.0,
            "carries": carries,
            "seed": seed,
        },
    }


def parse_options(model: str, options: Sequence[str]) -> dict[str, Any]:
    """Returns the options of a layer from `NAME=VALUE`; ValueError for another form or an unknown option."""
    accepting = (Memory, NeuralMemoryLayer) if model == "memory" else ()
    known = {name for layer in accepting for name in inspect.signature(layer.__init__).parameters}
    known -= {"self", "features", "memory", "options", "rngs"}
    parsed = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in known:
            raise ValueError(f"option must be one of {sorted(known)} for the model {model!r}, got {name!r}.")
        try:
            parsed[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise ValueError(f"option must be NAME=VALUE with a Python value, got {option!r}.") from None
    return parsed


def main(argv: list[str]) -> None:
    with one_line_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; name the model as --model=NAME.")
        sizes = {"steps": _WINDOW.value, "updates": _STEPS.value, "features": 128, "batch": _BATCH.value}
        files, workdir = None, pathlib.Path(_WORKDIR.value)
        if _SMOKE.value:
            sizes, files = {"steps": 16, "updates": 2, "features": 16, "batch": 2}, 40
            workdir = workdir.with_name(f"{workdir.name}_smoke")
        config = make_config(
            _MODEL.value,
            **sizes,
            seed=_SEED.value,
            learning_rate=_LEARNING_RATE.value,
            carries=_CARRIES.value,
            shift=_SHIFT.value,
            options=parse_options(_MODEL.value, _OPTION.value),
        )
        summary = train(config, workdir, text.load(most=files))
        print(f"{workdir}\n{format_table(summary['metrics'])}")


if __name__ == "__main__":
    _MODEL = flags.DEFINE_enum("model", "memory", list(MODELS), "Layer that mixes time steps.")
    _OPTION = flags.DEFINE_multi_string("option", [], "Option of the memory layer, NAME=VALUE.")
    _WORKDIR = flags.DEFINE_string("workdir", "runs/language/memory", "Folder of the run.")
    _STEPS = flags.DEFINE_integer("steps", 1500, "Updates.")
    _BATCH = flags.DEFINE_integer("batch", 16, "Windows per update.")
    _WINDOW = flags.DEFINE_integer("window", 256, "Characters per window.")
    _LEARNING_RATE = flags.DEFINE_float("learning_rate", 2e-3, "Largest learning rate.")
    _CARRIES = flags.DEFINE_bool("carries", False, "Train on successive windows, with the state of the last one.")
    _SHIFT = flags.DEFINE_integer("shift", 1, "Characters that every feed-forward part receives.", lower_bound=1)
    _SEED = flags.DEFINE_integer("seed", 0, "Random seed.")
    _SMOKE = flags.DEFINE_bool("smoke", False, "Train tiny sizes, as a test, in the folder WORKDIR_smoke.")
    app.run(main, flags_parser=parse_flags)
