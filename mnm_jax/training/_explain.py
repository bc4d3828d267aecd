"""Names the operation from which a number that is not finite came.

The program runs one operation after another. Each value carries its *origin*: None while it is finite, else the origin
of the first operand that was not finite, else the operation itself. Numbers that are masked afterwards, as a padded
step's may be, are thus not named.

Shape letter: `S` seeds.
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
import optax
from flax import nnx
from jax.extend import core

from mnm_jax._params import is_key
from mnm_jax.training._checkpoints import restore_checkpoint
from mnm_jax.training._config import TrainConfig
from mnm_jax.training._parallel import pad_batch
from mnm_jax.training._state import init_state, split_model
from mnm_jax.training._task import Task, optional_member
from mnm_jax.training._update import describe_fault, make_proposal

_LIBRARIES = tuple(f"{pathlib.Path(str(package.__file__)).parent}{os.sep}" for package in (jax, flax, optax))
# Calls of functions, by the name of the primitive: the parameter that holds the function.
_CALLS = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
}


class _Traced(NamedTuple):
    """A value, and the origin of its numbers that are not finite."""

    value: Any
    origin: str | None = None


def explain_fault(
    task: Task, make_model: Callable[[nnx.Rngs], nnx.Module], config: TrainConfig, workdir: str | os.PathLike
) -> str:
    """Returns a line that names the fault of a stopped run and the operation that caused it; changes no file.

    The update is computed again from the newest checkpoint, one operation at a time and therefore slowly.

    Args:
      task: the task.
      make_model: as in `train`.
      config: settings of the run.
      workdir: folder of the run.

    Raises:
      ValueError: if the newest checkpoint holds no fault, or all checkpoints are damaged.
    """
    optimizer = config.make_optimizer()
    streams = config.batch_size if optional_member(task, "carries") else 0
    like = jax.eval_shape(lambda: init_state(make_model, optimizer, config.seed, config.seeds, streams))
    saved = restore_checkpoint(workdir, like, change=False)
    fault = saved and describe_fault(saved.state, config.seed)
    if not saved or not fault:
        raise ValueError(f"{workdir} holds no run that stopped at a fault: there is nothing to explain.")
    steps = np.where(saved.state.fault_step < 0, np.iinfo(np.int32).max, saved.state.fault_step)
    seed = int(np.argmin(steps))
    state = jax.tree.map(lambda leaf: leaf[seed], saved.state)

    batch = None
    if task.loader is not None:
        loader, checked = task.loader(config.seed, config.batch_size), saved.notes.get("checked", {"step": 0})
        if "loader" in checked:
            loader.set_state(checked["loader"])
        for _ in range(int(steps[seed]) - checked["step"]):
            batch = pad_batch(next(loader), 1 if streams else config.accumulate)
    propose = make_proposal(
        split_model(make_model),
        task,
        optimizer,
        meta_weight=config.meta_weight,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
    )
    origins = find_origins(lambda state, batch: propose(state, batch).checked, state, batch)
    others = origins[: len(origins) - len(jax.tree.leaves(state.opt_state))]  # its state may begin with infinity
    origin = origins[int(state.fault_leaf)] or next(filter(None, others), None)
    if origin is None:
        return (
            f"{fault} Computed one operation at a time, all numbers of this update are finite: the fault is one of the "
            "compiled program. `discard_fault` (launch.train --after_fault) continues it from an earlier checkpoint."
        )
    return f"{fault} It comes from {origin}."


def find_origins(function: Callable, *args: Any) -> list[str | None]:
    """Returns, for each leaf of a function's result, the operation that made it not finite; None for a finite leaf."""
    closed = jax.make_jaxpr(function)(*args)
    inputs = [_Traced(leaf, None if _finite(leaf) else "an input of the update") for leaf in jax.tree.leaves(args)]
    return [traced.origin for traced in _run(closed, inputs, "")]


def _run(closed: Any, inputs: Sequence[_Traced], place: str) -> list[_Traced]:
    """Evaluates a jaxpr; `place` names the iterations of the loops around it."""
    jaxpr, consts = (closed.jaxpr, closed.consts) if isinstance(closed, core.ClosedJaxpr) else (closed, ())
    values: dict[Any, _Traced] = dict(zip(jaxpr.constvars, map(_Traced, consts), strict=True))
    values |= zip(jaxpr.invars, inputs, strict=True)

    def read(var: Any) -> _Traced:
        return _Traced(var.val) if isinstance(var, core.Literal) else values[var]

    for equation in jaxpr.eqns:
        name, operands = equation.primitive.name, [read(var) for var in equation.invars]
        if name in _CONTROL:
            results = _CONTROL[name](equation, operands, place)
        elif name in _CALLS:
            results = _run(equation.params[_CALLS[name]], operands, place)
        else:
            results = _apply(equation, operands, place)
        values |= zip(equation.outvars, results, strict=True)
    return [read(var) for var in jaxpr.outvars]


def _apply(equation: Any, operands: Sequence[_Traced], place: str) -> list[_Traced]:
    params = equation.primitive.get_bind_params(equation.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # a tuple before jax 0.10.2
    found = equation.primitive.bind(*functions, *(operand.value for operand in operands), **params)
    results = found if equation.primitive.multiple_results else [found]
    inherited = _first_origin(operands)
    return [
        _Traced(result, None if _finite(result) else inherited or _describe(equation, operands, place))
        for result in results
    ]


def _scan(equation: Any, operands: Sequence[_Traced], place: str) -> list[_Traced]:
    params = equation.params
    constants, carried = params["num_consts"], params["num_carry"]
    consts, carry, columns = operands[:constants], operands[constants:][:carried], operands[constants + carried :]
    length, rows = params["length"], []
    for index in reversed(range(length)) if params["reverse"] else range(length):
        inputs = [_slice(column, index) for column in columns]
        results = _run(params["jaxpr"], [*consts, *carry, *inputs], f"{place}, in iteration {index} of {length}")
        carry = results[:carried]
        rows.append(results[carried:])
    first = list(zip(*rows, strict=True))  # in the order of execution
    stacked = [_Traced(_stack(values, params["reverse"]), _first_origin(values)) for values in first]
    if not rows:
        shapes = [var.aval for var in equation.outvars[carried:]]
        stacked = [_Traced(np.zeros(aval.shape, aval.dtype)) for aval in shapes]
    return [*carry, *stacked]


def _while(equation: Any, operands: Sequence[_Traced], place: str) -> list[_Traced]:
    params = equation.params
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    condition, body, carry = operands[:first], operands[first:second], list(operands[second:])
    index = 0
    while _run(params["cond_jaxpr"], [*condition, *carry], place)[0].value:
        carry = _run(params["body_jaxpr"], [*body, *carry], f"{place}, in iteration {index}")
        index += 1
    return carry


def _cond(equation: Any, operands: Sequence[_Traced], place: str) -> list[_Traced]:
    branches = equation.params["branches"]
    return _run(branches[int(np.clip(operands[0].value, 0, len(branches) - 1))], operands[1:], place)


_CONTROL: dict[str, Callable[..., list[_Traced]]] = {"scan": _scan, "while": _while, "cond": _cond}


def _slice(column: _Traced, index: int) -> _Traced:
    value = column.value[index]
    return _Traced(value, None if _finite(value) else column.origin)


def _stack(values: Sequence[_Traced], reverse: bool) -> Any:
    ordered = [value.value for value in (reversed(values) if reverse else values)]
    return jax.numpy.stack(ordered) if is_key(ordered[0]) else np.stack([np.asarray(value) for value in ordered])


def _first_origin(values: Sequence[_Traced]) -> str | None:
    return next((value.origin for value in values if value.origin), None)


def _finite(value: Any) -> bool:
    dtype = getattr(value, "dtype", None) or np.asarray(value).dtype
    return not jax.dtypes.issubdtype(dtype, jax.numpy.floating) or bool(np.isfinite(np.asarray(value)).all())


def _describe(equation: Any, operands: Sequence[_Traced], place: str) -> str:
    """Returns primitive, place in the source, iteration, and the range of each operand."""
    frames = equation.source_info.traceback.frames if equation.source_info.traceback else []
    own = [frame for frame in frames if not frame.file_name.startswith(_LIBRARIES)]
    source = f" at {_short(own[0].file_name)}:{own[0].line_num} ({own[0].function_name})" if own else ""
    backward = ", in the backward pass" if "transpose" in str(equation.source_info.name_stack) else ""
    ranges = [_range(operand.value) for operand in operands]
    return f"the operation {equation.primitive.name}{source}{backward}{place}, with operands {' and '.join(ranges)}"


def _short(path: str) -> str:
    return "/".join(pathlib.Path(path).parts[-2:])


def _range(value: Any) -> str:
    """Returns dtype, shape and range of an operand, as `float32[2, 3] from 0 to 1.5`."""
    if is_key(value):
        return "a random key"
    array = np.asarray(value)
    low, high = (f"{number:.4g}" for number in (array.min(), array.max())) if array.size else ("-", "-")
    return f"{array.dtype}[{', '.join(map(str, array.shape))}] from {low} to {high}"
