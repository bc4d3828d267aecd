"""How fast a run would be on many chips, with paper and pencil: no device is asked.

    python -m launch.scaling --config=launch/configs/babi_paper.py:mnm-p --chip=v5e [--config.KEY=VALUE ...]

The model: a training step of T time steps takes, with b examples a chip on n chips,

    time = T latency + max(3 F T b / peak, 3 M T b / bandwidth) + all-reduce
    all-reduce = 2 (n - 1) / n * 4 P S / link + hops * 1 us

F: multiplications and additions of a time step, forward, of one example with all seeds; M: bytes of memory weights that
it moves, where they do not stay on the chip; P: parameters; S: seeds. The backward pass counts as two forward passes.
Both terms are checked against compiled programs in `tests/launch/test_scaling.py`. The latency is that of starting what
a time step starts on a chip, forward and back; it is an assumption until it is measured: train on one chip, and divide.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import app, flags
from ml_collections import config_flags

from launch.errors import one_line_errors, parse_flags
from launch.reporting.table import format_columns
from launch.runs.build import build_make_model, build_task, build_training, count_parameters

_FLOAT = 4  # bytes
_HOP = 1e-6  # seconds
_BACKWARD = 2  # forward passes that a backward pass costs


class Chip(NamedTuple):
    """What its maker says. peak: FLOP/s in bfloat16; bandwidth, link: bytes/s of its memory, to its neighbours."""

    peak: float
    bandwidth: float
    link: float


CHIPS = {
    "v4": Chip(275e12, 1.2e12, 300e9),
    "v5e": Chip(197e12, 0.82e12, 200e9),
    "v6e": Chip(918e12, 1.64e12, 448e9),
    "h100": Chip(989e12, 3.35e12, 450e9),  # within a machine of eight
}


class Cost(NamedTuple):
    """Of one example in one time step, forward. moved: bytes of memory weights; kept: bytes of its carry."""

    flops: float
    moved: float
    kept: float


def step_cost(inputs: int, classes: int, model: Mapping[str, Any]) -> Cost:
    """What a cell computes in a time step: products of matrices alone, by the sizes of its config.

    A controller of h units, H heads, L layers of width d: the LSTM 8 h (D + d + h), keys and values 2 h d (1 + 3 H),
    and 2 H d^2 for each meeting of H rows with a layer of the memory: L each for f(k^w), for the write, for f(k^r), and
    L for the slow maps of the local rule, or L - 1 for the way back of the gradient.

    Raises:
        ValueError: a model without a formula here.
    """
    name, h = model["name"], model["hidden_features"]
    if name == "lstm":
        return Cost(8 * h * (inputs + h) + 2 * h * classes, 0, _FLOAT * 2 * h)
    if name not in ("mnm-p", "mnm-g"):
        raise ValueError(f"there is a formula for mnm-p, mnm-g and lstm, got {name!r}.")
    d, heads, layers = model["memory_features"], model.get("heads", 1), model.get("memory_layers", 3)
    by_rule = layers if name == "mnm-p" else layers - 1
    small = 8 * h * (inputs + d + h) + 2 * h * d * (1 + 3 * heads) + 2 * d + 2 * (h + d) * classes
    weights = _FLOAT * layers * d * d
    # Weights are read for f(k^w), read and written by the write, and read for f(k^r).
    return Cost(small + 2 * heads * d * d * (3 * layers + by_rule), 4 * weights, weights + _FLOAT * (2 * h + d))


class Step(NamedTuple):
    """Seconds of a training step."""

    compute: float
    memory: float
    latency: float
    all_reduce: float

    @property
    def total(self) -> float:
        return self.latency + max(self.compute, self.memory) + self.all_reduce


def step_time(cost: Cost, chip: Chip, *, chips: int, batch: float, steps: int, parameters: int, latency: float) -> Step:
    """A training step with `batch` examples a chip, `steps` time steps of `latency` seconds, and so many parameters."""
    passes = (1 + _BACKWARD) * steps * batch
    hops = 2 * 2 * (math.sqrt(chips) - 1)  # there and back along both sides of a square of chips
    ring = 2 * (chips - 1) / chips * _FLOAT * parameters / chip.link
    return Step(
        passes * cost.flops / chip.peak, passes * cost.moved / chip.bandwidth, steps * latency, ring + hops * _HOP
    )


def rows(cost: Cost, chip: Chip, counts: Sequence[int], batch: int, **others: Any) -> list[dict[str, str]]:
    """The table: a step with `batch` examples a chip, and the efficiencies of so many chips.

    Efficiency: the time of one chip over n times that of n chips for the same work, as the batch grows with the chips
    (weak), or stays that of the fewest chips in the table (strong).
    """
    alone = step_time(cost, chip, chips=1, batch=batch, **others).total
    whole = batch * counts[0]
    table = []
    for chips in counts:
        step = step_time(cost, chip, chips=chips, batch=batch, **others)
        split = step_time(cost, chip, chips=chips, batch=whole / chips, **others).total
        one = step_time(cost, chip, chips=1, batch=whole, **others).total
        table.append(
            {
                "chips": str(chips),
                "batch": f"{batch * chips:,}",
                **{name: f"{1e3 * seconds:.3f} ms" for name, seconds in step._asdict().items()},
                "step": f"{1e3 * step.total:.3f} ms",
                "weak": f"{alone / step.total:.0%}",
                "strong": f"{one / (chips * split):.0%}" if whole >= chips else "-",
            }
        )
    return table


def main(argv: list[str]) -> None:
    with one_line_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; settings are given as --config.KEY=VALUE.")
        config = json.loads(json.dumps(_CONFIG.value.to_dict()))
        task, training = build_task(config["task"]), build_training(config["training"])
        parameters = count_parameters(build_make_model(config["model"], task)) * training.seeds
        one = step_cost(task.input_features, task.output_features, config["model"])
        cost = Cost(*(training.seeds * number for number in one))
        steps, batch = _STEPS.value, training.batch_size
        passes = (1 + _BACKWARD) * steps * batch
        print(
            f"{batch} examples of {steps} time steps: {passes * cost.flops / 1e9:,.2f} GFLOP, "
            f"{passes * cost.moved / 1e9:,.2f} GB moved, {cost.kept * batch / 1e6:,.1f} MB of carry; "
            f"{parameters:,} parameters, {4 * _FLOAT * parameters / 1e6:,.1f} MB with gradient and Adam's moments."
        )
        table = rows(
            cost,
            CHIPS[_CHIP.value],
            [int(number) for number in _CHIPS.value],
            batch,
            steps=steps,
            parameters=parameters,
            latency=1e-6 * _LATENCY.value,
        )
        print(format_columns(table))


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", help_string="The recipe: a file of launch/configs.")
    _CHIP = flags.DEFINE_enum("chip", "v5e", sorted(CHIPS), "Which chip.")
    _CHIPS = flags.DEFINE_list("chips", ["8", "64", "256"], "How many.")
    _STEPS = flags.DEFINE_integer("steps", 64, "Time steps of a sequence.", lower_bound=1)
    _LATENCY = flags.DEFINE_float(
        "latency_us", 100.0, "Microseconds of a time step that does nothing, forward and back."
    )
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)
