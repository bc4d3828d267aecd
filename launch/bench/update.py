"""Cost of a recipe's update in each execution form. Shape letters: `T` steps, `B` batch."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from launch.bench.header import count_memory
from launch.bench.measure import Candidate, Program, Row, compile_timed, keep_state, measure
from launch.runs.build import Parts
from launch.runs.size import typical_batch
from mnm_jax import choose_form
from mnm_jax.recurrence import FORMS
from mnm_jax.training import (
    SequenceModel,
    init_state,
    make_parallel_update,
    optional_member,
    played,
    split_model,
)
from mnm_jax.training._parallel import pad_batch


class _InForm(nnx.Module):
    """A `SequenceModel` that runs every sequence in one execution form, or a layer, which has none."""

    def __init__(self, model: SequenceModel, form: str) -> None:
        self.model, self.form = model, form

    @property
    def cell(self) -> Any:
        return self.model.cell

    @property
    def dropout(self) -> float:
        return self.model.dropout

    def __call__(self, inputs: Any, **options: Any) -> Any:
        form: dict[str, Any] = {"form": self.form} if isinstance(self.cell, nnx.RNNCellBase) else {}
        return self.model(inputs, **form, **options)

    def start(self, batch_size: int) -> Any:
        return self.model.start(batch_size)

    def step(self, carry: Any, inputs: Any) -> Any:
        return self.model.step(carry, inputs)


def update_costs(parts: Parts, devices: Sequence[jax.Device], forms: Sequence[str] = FORMS) -> Iterator[Row]:
    """Yields the cost of an update of all seeds, as training runs it, in one form after the other.

    A row has the fields of `launch.bench.measure.measure` and: form, chosen (the form that runs), steps (`T`), batch
    (`B`), devices. A model without a neural memory has the form "plain" only.

    Args:
      parts: task, model and settings of the recipe. A task that reads files is measured with one of its first
        batches, see `typical_batch`.
      devices: the devices, which share the batch.
      forms: the forms to measure.

    Raises:
      ValueError: if the number of devices does not divide the batch.
    """
    task, make_model, training = parts
    batch = None
    if task.loader is not None:  # padded as in training
        splits = 1 if optional_member(task, "carries") else training.accumulate
        batch = pad_batch(typical_batch(task, training), len(devices) * splits)

    def mask(model: Any) -> Any:
        drawn = batch
        if task.sample is not None:
            drawn = task.sample(jax.random.key(0), training.batch_size, jnp.int32(0))
        return played(model, task, drawn).mask

    model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
    steps, examples = jax.eval_shape(mask, model).shape
    if choose_form(model.cell, steps, form="reversible") == "plain":
        forms = ("plain",)
    for form in forms:
        chosen = choose_form(model.cell, steps, form=form)
        fields = {"form": form, "chosen": chosen, "steps": steps, "batch": examples, "devices": len(devices)}
        candidate = Candidate(fields, partial(_compile, parts, devices, form, batch, examples))
        yield from measure([candidate], memory_bytes=count_memory(devices), pause=lambda: None)


def describe_cost(row: Row, updates: int) -> str:
    """Returns one line on the cost in a form; `updates` is the number of updates of the recipe."""
    name = row["form"] if row["form"] != "auto" else f"auto ({row['chosen']})"
    parts = [] if row["compile_seconds"] is None else [f"compiled in {row['compile_seconds']:.1f} s"]
    if row["temp_bytes"] is not None:
        parts.append(f"{row['temp_bytes'] / 2**20:,.1f} MiB of temporary memory")
    if row["milliseconds"] is None:
        return f"{name}: {', '.join([*parts, row['note']])}"
    seconds = row["milliseconds"] / 1e3
    parts += [f"{1e3 * seconds:,.1f} ms per update", f"{1e6 * seconds / row['steps']:,.0f} us per step"]
    return f"{name}: {', '.join(parts)}; {updates:,} updates take {_duration(updates * seconds)}"


def _compile(parts: Parts, devices: Sequence[jax.Device], form: str, batch: Any, examples: int) -> Program:
    task, make_model, training = parts
    optimizer = training.make_optimizer()

    def make(rngs: nnx.Rngs) -> nnx.Module:
        return _InForm(make_model(rngs), form)

    update: Any = make_parallel_update(
        split_model(make),
        task,
        optimizer,
        meta_weight=training.meta_weight,
        batch_size=examples,
        accumulate=training.accumulate,
        devices=devices,
    )
    streams = examples if optional_member(task, "carries") else 0
    state = init_state(make, optimizer, training.seed, training.seeds, streams)
    compiled, temp_bytes, seconds = compile_timed(update, (state, batch), len(devices))
    return Program(keep_state(lambda state: compiled(state, batch), state), temp_bytes, seconds)


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
