"""Exports models for use without this library: one step as StableHLO, parameters as safetensors.

Shape letters: `B` examples.
"""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax._extras import extra
from mnm_jax._files import whole_file
from mnm_jax._params import by_name, leaf_names
from mnm_jax.cells import split_output
from mnm_jax.layers import NeuralMemoryLayer

Array = jax.Array

PLATFORMS = ("cpu", "cuda", "tpu")
_BITS = (8, 16, 32, 64)
_DTYPES: dict[str, Any] = {"F64": jnp.float64, "F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}
_DTYPES["BOOL"] = jnp.bool_
_DTYPES |= {f"{letter}{bits}": f"{kind}{bits}" for letter, kind in (("I", "int"), ("U", "uint")) for bits in _BITS}
_WEIGHTS = nnx.Not(nnx.RngState)
_CALLS = ("jit", "pjit", "checkpoint", "remat2")  # JAX's calls of a program, which is their parameter "jaxpr"


def export_step(
    model: nnx.Module,
    carry: Any,
    inputs: Any,
    step: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None,
    *,
    platforms: tuple[str, ...] = PLATFORMS,
) -> jax.export.Exported:
    """Returns one step as an exported function of dictionaries and arrays, for any batch size, that needs only jax.

        (weights, carry, inputs [B, ...]) -> (carry, outputs [B, ...])

    `weights` and `carry` are dictionaries of arrays by name, which `to_arrays` returns for a model and for its carry.
    `exported.serialize()` returns the bytes of a file; `jax.export.deserialize(data).call(weights, carry, inputs)` runs
    a step. Serialising needs the extra "export".

    Args:
      model: a cell, a `NeuralMemoryLayer`, or any module that `step` can run.
      carry: a carry of any batch size, or its shapes and dtypes; the first axis of every leaf is `B`.
      inputs: the inputs of one step `[B, ...]`, an array or, if `step` takes them so, a tuple or dictionary of arrays;
        or their shapes and dtypes.
      step: `(model, carry, inputs) -> (carry, outputs)`; None: one step of a cell, whose outputs are its features, or
        one token of a layer.
      platforms: platforms to compile for.

    Raises:
      ValueError: if the leaves of carry and inputs differ in the size of their first axis, or the step changes the
        model: it counts or caches in a variable, or draws random numbers, as dropout does unless `model.eval()` was
        called.

    Examples:
      >>> from mnm_jax import LSTMCell
      >>> cell = LSTMCell(3, 4, rngs=nnx.Rngs(0))
      >>> exported = export_step(cell, cell.initialize_carry((1, 3)), jnp.zeros((1, 3)), platforms=("cpu",))
      >>> carry = to_arrays(cell.initialize_carry((7, 3)))
      >>> carry, features = jax.export.deserialize(exported.serialize()).call(to_arrays(cell), carry, jnp.ones((7, 3)))
      >>> features.shape
      (7, 4)
    """
    take_step: Callable[[Any, Any, Any], tuple[Any, Any]] = step or (
        _layer_step if isinstance(model, NeuralMemoryLayer) else _cell_step
    )
    states: Any = nnx.split(model, _WEIGHTS, ...)
    graphdef, weights, random = states
    weights_tree, carry_tree = jax.tree.structure(weights), jax.tree.structure(carry)
    names, carry_names = list(to_arrays(weights)), list(to_arrays(carry))

    def run(weights: dict[str, Array], carry: dict[str, Array], inputs: Any) -> tuple[dict[str, Array], Any]:
        own = jax.tree.map(lambda leaf: leaf, random)  # a copy that the step may change
        rebuilt = nnx.merge(graphdef, jax.tree.unflatten(weights_tree, [weights[name] for name in names]), own)
        old = jax.tree.unflatten(carry_tree, [carry[name] for name in carry_names])
        new, outputs = take_step(rebuilt, old, inputs)
        return dict(zip(carry_names, jax.tree.leaves(new), strict=True)), outputs

    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves((carry, inputs))}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(f"the first axis of carry and inputs must be the batch, the same in all, got {sorted(sizes)}.")
    (batch,) = jax.export.symbolic_shape("b")
    any_batch = lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype)  # noqa: E731
    _check_unchanged(model, take_step, *jax.tree.map(any_batch, (carry, inputs)))
    weights_shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), to_arrays(model))
    shapes = (weights_shapes, *jax.tree.map(any_batch, (to_arrays(carry), inputs)))
    return jax.export.export(jax.jit(run), platforms=platforms)(*shapes)


def to_arrays(tree: Any) -> dict[str, Array]:
    """Returns the arrays of a module, a carry or any other pytree by name, such as `memory_params.weights[0]`.

    The state of a module's random numbers, of dropout for example, is left out.

    Raises:
      ValueError: if two arrays have the same name.
    """
    tree = nnx.state(tree, _WEIGHTS) if isinstance(tree, nnx.Module) else tree
    return by_name(tree)


def save_safetensors(path: str | os.PathLike, arrays: Mapping[str, Array]) -> None:
    """Writes arrays by name, as `to_arrays` returns them; the file appears only when complete.

    Raises:
      ImportError: safetensors is not installed.
    """
    with extra("export"):
        from safetensors.flax import save

    with whole_file(pathlib.Path(path), "wb") as file:
        file.write(save({name: jnp.asarray(array) for name, array in arrays.items()}))


def load_safetensors(path: str | os.PathLike, model: nnx.Module) -> None:
    """Sets the parameters of a model from a file with the same names, shapes and dtypes, on the devices they are on.

    Args:
      path: a safetensors file of any origin.
      model: the model to change; it is unchanged after an error.

    Raises:
      FileNotFoundError: if the file does not exist.
      ImportError: safetensors is not installed.
      ValueError: if the file is damaged, or belongs to another model.
    """
    with extra("export"):
        from safetensors import SafetensorError, deserialize

    try:
        content = deserialize(pathlib.Path(path).read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); write it again.") from error
    arrays = {name: _read(path, name, **tensor) for name, tensor in content}
    state = nnx.state(model, _WEIGHTS)
    own = to_arrays(model)
    for what, names in [("lacks", own.keys() - arrays.keys()), ("has unknown", arrays.keys() - own.keys())]:
        if names:
            raise ValueError(f"{path} {what} {', '.join(sorted(names))}: it belongs to another model.")
    for name, array in own.items():
        if (array.shape, array.dtype) != (arrays[name].shape, arrays[name].dtype):
            there = f"{arrays[name].dtype}{list(arrays[name].shape)}"
            raise ValueError(f"{path} has {name} as {there}, this model as {array.dtype}{list(array.shape)}.")
    placed = [_place(arrays[name], like) for name, like in own.items()]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), placed))


def _read(path: Any, name: str, *, dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    # safetensors' own reader uses NumPy dtypes, which lack bfloat16.
    if dtype not in _DTYPES:
        raise ValueError(f"{path} has {name} as {dtype}; readable are {', '.join(_DTYPES)}.")
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)


def _place(array: np.ndarray, like: Array) -> Array:
    """Returns an array on the devices of another, if these were chosen."""
    return jax.device_put(array, like.sharding) if getattr(like, "committed", False) else jnp.asarray(array)


def _check_unchanged(model: nnx.Module, take_step: Callable[..., Any], carry: Any, inputs: Any) -> None:
    """Raises ValueError if a step changes the model, since an export passes only the carry from step to step."""
    model = nnx.clone(model)
    nnx.pop(model, nnx.Intermediate)  # these are kept for inspection only
    graphdef, state = nnx.split(model)
    names, same = list[str](), True

    def run(state: Any, carry: Any, inputs: Any) -> list[Array]:
        nonlocal names, same
        own = nnx.merge(graphdef, state)
        take_step(own, carry, inputs)
        nnx.pop(own, nnx.Intermediate)
        after, state = nnx.split(own)
        names, same = leaf_names(state), after == graphdef
        return jax.tree.leaves(state)

    program = jax.make_jaxpr(run)(state, carry, inputs).jaxpr
    before = dict(zip(leaf_names(state), program.invars, strict=False))  # the carry and the inputs follow
    after = zip(names, program.outvars, strict=True)
    changed = [name for name, var in after if _source(program, var) is not before.get(name)]
    changed += [name for name in before if name not in names]
    if not set(leaf_names(nnx.state(model, nnx.RngState))).isdisjoint(changed):
        raise ValueError("the step draws random numbers, which an export would repeat at every step: use model.eval().")
    if changed or not same:
        what = repr(changed[0]) if changed else "attributes of the model"
        raise ValueError(f"the step changes {what}, which an export does not pass on: keep it in the carry.")


def _source(program: Any, var: Any) -> Any:
    """Returns the variable of a program whose value another one has because a call returned it unchanged."""
    for eqn in program.eqns:
        places = [place for place, out in enumerate(eqn.outvars) if out is var]
        if places and eqn.primitive.name in _CALLS:
            inner = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])
            found = _source(inner, inner.outvars[places[0]])
            return next((_source(program, x) for x, y in zip(eqn.invars, inner.invars, strict=True) if y is found), var)
    return var


def _layer_step(layer: NeuralMemoryLayer, carry: Any, inputs: Array) -> tuple[Any, Any]:
    return layer.step(carry, inputs)  # a subclass may have its own


def _cell_step(cell: nnx.RNNCellBase, carry: Any, inputs: Array) -> tuple[Any, Array]:
    carry, outputs = cell(carry, inputs)
    return carry, split_output(outputs)[0]
