"""Benchmark of one accelerator: cells and layers in every form, the most important rows first.

Shape letters: `T` steps, `B` batch.
"""

import importlib.metadata
import importlib.util
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from launch.bench.accelerator.peaks import find_peaks
from launch.bench.accelerator.programs import GIVEN_KEYS, MNM, Case
from launch.bench.measure import Candidate, Group, Program, Row, with_ratios
from mnm_jax import choose_form

FORMS = ("plain", "reversible", "factored")
LAYERS = ("layer: delta rule", "layer: local, two layers")
DTYPES = ("float32", "bfloat16", "float32 highest")


def accelerator(
    devices: Sequence[jax.Device],
    *,
    models: Sequence[str] = (*LAYERS, GIVEN_KEYS, "attention", "LSTM", "MNM-p", "MNM-g"),
    heads: Sequence[int] = (1, 4),
    steps: Sequence[int] = (128, 512, 32),
    batches: Sequence[int] = (64, 512),
    dtypes: Sequence[str] = DTYPES,
    width: int = 128,
    tokens: Sequence[int] = (2048, 8192),
    tokens_per_batch: int = 16384,
    layer_width: int = 512,
    layer_heads: int = 8,
) -> Iterator[Group]:
    """Yields a group per model and sizes: value and gradient of a sequence in every form, and in PyTorch.

    The first value of each argument is the most important one: the groups in which all values are first ones come
    first, then the groups in which one value differs, and so on. "float32 highest" computes products in full float32;
    it comes after the other dtypes, and for the first sizes only.

    Besides the fields of `measure`, a row has

    * auto: whether "auto" chooses the row's form;
    * value: the loss, and gradient_difference: |g - g_0| / |g_0| for the gradients g_0 of the group's first form that
      ran, None for PyTorch;
    * tokens_per_second: T B per second;
    * fraction_of_peak, fraction_of_bandwidth: the operations of the plain program, as XLA counts them, and the bytes of
      `count_bytes`, relative to the device's peak rates; None for an unknown device;
    * peak_bytes: the peak of the device's memory in use, where the row has raised it; PyTorch's own peak.

    Args:
      devices: the first one is used.
      models: models to measure.
      heads: numbers of heads of the cells with a memory.
      steps: lengths `T` of the cells.
      batches: batches `B` of the cells.
      dtypes: dtypes of the computation; parameters and fast weights are float32.
      width: features of the cells: inputs, controller, keys, values and the hidden layers of the memory. The memory
        with given keys is measured at this width and at half of it, with the first value of every other argument.
      tokens: lengths `T` of the layers.
      tokens_per_batch: `T B` of the layers.
      layer_width: features of the layers.
      layer_heads: heads of the layers, with 64 features each.
    """
    order: list[tuple[int, dict[str, Any]]] = []
    for model in models:
        is_cell, has_kernel = model in ("LSTM", GIVEN_KEYS, *MNM), model == GIVEN_KEYS
        many: Sequence[int | None] = heads if model in MNM else (None,) if is_cell else (layer_heads,)
        widths: tuple[int, ...] = (width if is_cell else layer_width,)
        if has_kernel:  # only half the width fits in the registers of a GPU
            many, widths = heads[:1], (width // 2, width)
        lengths, sizes = (steps, batches) if is_cell else (tokens, (tokens_per_batch,))
        # Programs that differ in T alone are compiled quickly one after another, since XLA tunes their products once.
        combinations = itertools.product(enumerate(sizes), enumerate(dtypes), enumerate(lengths))
        for (b_rank, batch), (d_rank, dtype), (t_rank, t) in combinations:
            rank = min(t_rank, 1) + b_rank + d_rank
            if dtype == "float32 highest" and (t_rank or b_rank):
                continue
            if has_kernel and rank:  # Triton compiles this kernel slowly
                continue
            sizes_of_inputs = {"steps": t, "batch": batch if is_cell else max(1, batch // t)}
            for h, w in itertools.product(many, widths):
                fields: dict[str, Any] = {"model": model, "heads": h} | sizes_of_inputs | {"width": w, "dtype": dtype}
                order.append((rank, fields))
    peak = _Peak(devices[0])
    for _, fields in sorted(order, key=lambda entry: entry[0]):
        yield _group(fields, devices[0], peak)


class _Peak:
    """The peak of a device's memory in use, as of the last call."""

    def __init__(self, device: jax.Device):
        self.device = device
        self.bytes = 0

    def raised(self) -> int | None:
        """Returns the peak if it has risen since the last call, else None."""
        now = (self.device.memory_stats() or {}).get("peak_bytes_in_use", 0)
        before, self.bytes = self.bytes, max(now, self.bytes)
        return now if now > before else None


def _group(fields: dict[str, Any], device: jax.Device, peak: _Peak) -> Group:
    case = Case(fields)
    reference: list[Any] = []

    def inspect(result: Any) -> Row:
        value, gradients = result
        if not reference:
            reference.append(gradients)
        difference = _difference(gradients, *reference)
        return _finite({"value": float(value), "gradient_difference": difference, "peak_bytes": peak.raised()})

    def ours(form: str) -> Program:
        return case.program(form, device)._replace(inspect=inspect)

    def torch() -> Program:
        from launch.bench.accelerator.torch_programs import torch_program

        program = torch_program(case, device.platform)
        return program._replace(inspect=lambda result: _finite(program.inspect(result) if program.inspect else {}))

    forms, first = _forms(fields, device)
    auto = choose_form(case.model, fields["steps"]) if fields["model"] in MNM else None
    unknown = dict.fromkeys(("value", "gradient_difference", "peak_bytes"))
    candidates = [
        Candidate(fields | {"form": form}, partial(ours, form), {"auto": form == auto} | unknown) for form in forms
    ]
    if importlib.util.find_spec("torch") and fields["model"] in ("MNM-p", "LSTM", "attention"):
        about = {"auto": False, "packages": {"torch": importlib.metadata.version("torch")}}
        candidates.append(Candidate(fields | {"form": "torch"}, torch, about | unknown))
    return Group(candidates, partial(_with_rates, case=case, device=device, reference=first))


def _forms(fields: Mapping[str, Any], device: jax.Device) -> tuple[tuple[str, ...], str]:
    """Returns the forms in JAX, and the one to which ratios are computed."""
    if fields["model"] in MNM:
        return FORMS, "plain"
    if fields["model"] == "LSTM":
        return ("plain",), "plain"
    if fields["model"] == "attention":
        fused = device.platform == "gpu" and fields["dtype"] == "bfloat16"
        return (("cudnn", "xla") if fused else ("xla",)), "xla"
    # On a CPU a kernel would be interpreted, operation by operation. No kernel computes in bfloat16.
    kernel = () if device.platform == "cpu" or fields["dtype"] == "bfloat16" else ("pallas",)
    if fields["model"] == GIVEN_KEYS:
        return ("xla", *kernel), "xla"
    return ("chunks", *kernel, "steps"), "steps"


def _finite(row: Row) -> Row:
    """Returns fields of a row; numbers that are not finite, which JSON cannot hold, become None and a note."""
    lost = [name for name, number in row.items() if number is not None and not math.isfinite(number)]
    note = {"note": f"not finite: {', '.join(lost)}"} if lost else {}
    return row | dict.fromkeys(lost) | note


def _difference(gradients: Any, reference: Any) -> float:
    """Returns |g - g_0| / |g_0| over all leaves."""
    pairs = list(zip(jax.tree.leaves(gradients), jax.tree.leaves(reference), strict=True))
    change = sum(float(jnp.sum(jnp.square(g - g0))) for g, g0 in pairs)
    size = sum(float(jnp.sum(jnp.square(g0))) for _, g0 in pairs)
    return (change / size) ** 0.5 if size else 0.0


def _with_rates(rows: list[Row], *, case: Case, device: jax.Device, reference: str) -> list[Row]:
    """Returns the rows with ratios to the reference, tokens_per_second, and shares of the device's peak rates."""
    peaks = find_peaks(device.device_kind)

    def rated(row: Row) -> Row:
        rates: Row = dict.fromkeys(("tokens_per_second", "fraction_of_peak", "fraction_of_bandwidth"))
        if row["milliseconds"] is not None:
            seconds = row["milliseconds"] / 1e3
            rates["tokens_per_second"] = row["steps"] * row["batch"] / seconds
            if peaks is not None:
                flops = case.flops(row["form"])
                rates["fraction_of_peak"] = flops and flops / seconds / peaks.rate(row["dtype"])
                rates["fraction_of_bandwidth"] = case.bytes_moved(row["form"]) / seconds / peaks.bandwidth
        return row | rates

    return [rated(row) for row in with_ratios(rows, "form", reference)]
