"""Contracts of a layer `(carry, inputs [T, B, D]) -> (carry, outputs [T, B, D])` with a `step` for one token.

Shape letters: `T` time steps, `B` examples, `D` features.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mnm_jax.testing._contract import (
    assert_close,
    assert_equal,
    assert_finite,
    contract,
    kinds,
    normal,
    require,
)

Array = jax.Array
Layer = Any  # a module with the interface of `NeuralMemoryLayer`; see `check_layer`
T, B = 7, 3


def _inputs(layer: Layer) -> Array:
    """Returns random inputs `[T, B, D]` in the dtype of the layer's outputs."""
    tokens = jax.ShapeDtypeStruct((1, B, layer.features), jnp.float32)
    dtype = _run.eval_shape(layer, None, tokens)[1].dtype
    return normal((T, B, layer.features), dtype)


@jax.jit
def _run(layer: Layer, carry: Any, inputs: Array) -> tuple[Any, Array]:
    return layer(carry, inputs)


@jax.jit
def _step(layer: Layer, carry: Any, inputs: Array) -> tuple[Any, Array]:
    return layer.step(carry, inputs)


@jax.jit
def _run_by_steps(layer: Layer, carry: Any, inputs: Array) -> tuple[Any, Array]:
    carry, first = layer.step(carry, inputs[0])
    carry, others = jax.lax.scan(lambda carry, now: layer.step(carry, now), carry, inputs[1:])
    return carry, jnp.concatenate([first[None], others])


@jax.jit
def _run_divided(layer: Layer, carry: Any, inputs: Array) -> tuple[Any, Array]:
    carry, first = layer(carry, inputs[:2])
    carry, second = _run_by_steps(layer, carry, inputs[2:4])
    carry, third = layer(carry, inputs[4:])
    return carry, jnp.concatenate([first, second, third])


@partial(jax.jit, static_argnums=0)  # the checks share its few programs
def _differentiate(way: Callable, layer: Layer, carry: Any, inputs: Array, weights: Array, **flags: Any) -> Any:
    """Returns a run's results, and the gradients of sum(weights sin(outputs)) with respect to layer and inputs."""

    def value(layer: Layer, inputs: Array) -> tuple[Array, Any]:
        carry_and_outputs = way(layer, carry, inputs, **flags)
        return jnp.sum(jnp.sin(carry_and_outputs[1]) * weights), carry_and_outputs

    (_, results), gradients = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(layer, inputs)
    return results, gradients


def _call(layer: Layer, carry: Any, inputs: Array, **flags: Any) -> tuple[Any, Array]:
    return layer(carry, inputs, **flags)


@contract
def check_layer_dtypes(make_layer: Callable[..., Layer]) -> None:
    """Checks that the carry keeps its shapes and dtypes, and that outputs have `dtype`, to which inputs are cast.

    Args:
      make_layer: `make_layer(dtype=..., param_dtype=...)` returns the layer.
    """
    for param_dtype, dtype in [(jnp.float32,) * 2, (jnp.bfloat16,) * 2, (jnp.float32, jnp.bfloat16)]:
        layer = nnx.eval_shape(partial(make_layer, dtype=dtype, param_dtype=param_dtype))
        carry = jax.eval_shape(lambda layer: layer.initialize_carry((B, layer.features)), layer)
        for leaf in jax.tree.leaves(carry):
            require(leaf.shape[:1] == (B,), f"Leaves of the carry must have shape [B, ...], got {leaf.shape}.")
        for given in (dtype, jnp.float32):
            for way, shape in [(_run, (T, B, layer.features)), (_step, (B, layer.features))]:
                inputs = jax.ShapeDtypeStruct(shape, given)
                new, outputs = way.eval_shape(layer, carry, inputs)
                require(kinds(new) == kinds(carry), f"The carry changes from {kinds(carry)} to {kinds(new)}.")
                expected = (inputs.shape, jnp.dtype(dtype))
                require(kinds(outputs) == expected, f"Outputs must be {expected}, got {kinds(outputs)}.")


@contract
def check_layer_carry(layer: Layer) -> None:
    """Checks that a fresh carry can be donated, and that a carry of another batch size or dtype is refused.

    No leaf of the carry may share its buffer with another one, or with the layer.
    """
    inputs = _inputs(layer)
    _, expected = _step(layer, None, inputs[0])
    for jit in (jax.jit, nnx.jit):
        step = jit(lambda layer, carry, inputs: layer.step(carry, inputs), donate_argnums=1)
        assert_close(step(layer, layer.initialize_carry(inputs.shape[1:]), inputs[0])[1], expected)
    carry = layer.initialize_carry(inputs.shape[1:])
    wrong = {
        "another batch size": jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), carry),
        "another dtype": jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float16), carry),
    }
    for (name, given), (way, now) in itertools.product(wrong.items(), [(layer, inputs), (layer.step, inputs[0])]):
        try:
            jax.eval_shape(way, given, now)
        except ValueError as error:
            require("carry" in str(error), f"The error must name the carry, got: {error}")
        else:
            raise AssertionError(f"A carry of {name} must be refused with a ValueError.")


@contract
def check_layer_steps(layer: Layer) -> None:
    """Checks that a whole sequence, its tokens one by one, and a sequence divided between calls and steps agree.

    Values and gradients are compared. Sequences begin with a carry of None, and tokens one by one with
    `initialize_carry`, which must give the same outputs.
    """
    inputs = np.asarray(_inputs(layer))
    weights = np.ones_like(inputs)
    results, gradients = _differentiate(_call, layer, None, inputs, weights)
    divided, divided_gradients = _differentiate(_run_divided, layer, None, inputs, weights)
    assert_close(divided, results)
    assert_close(jax.tree.leaves(divided_gradients), jax.tree.leaves(gradients))
    start = layer.initialize_carry(inputs.shape[1:])
    assert_close(_run_by_steps(layer, start, inputs), results)


@contract
def check_layer_masking(layer: Layer) -> None:
    """Checks that padding, NaN included, changes no output, carry or later step and gets exactly zero gradient."""
    inputs, start = np.asarray(_inputs(layer)), layer.initialize_carry((B, layer.features))
    mask = np.array([[1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 1, 1], [1, 0, 1, 0, 1, 0, 1]], bool).T
    padded, weights = np.where(mask[..., None], inputs, np.full_like(inputs, np.nan)), np.ones_like(inputs)
    (carry, outputs), (_, gradient) = _differentiate(_call, layer, start, padded, weights, mask=mask)
    kept = np.argsort(~mask, axis=0, kind="stable")[:4]
    short_carry, expected = _run(layer, None, np.take_along_axis(inputs, kept[..., None], 0))
    outputs = np.asarray(outputs)
    assert_close(np.take_along_axis(outputs, kept[..., None], 0), expected)
    require(np.all(outputs[~mask] == 0), "Outputs of padding must be zero.")
    assert_close(carry, short_carry)
    (unchanged, _), _ = _differentiate(_call, layer, carry, padded, weights, mask=np.zeros_like(mask))
    assert_equal(unchanged, carry)
    more = inputs[:4]
    assert_close(_run_by_steps(layer, carry, more), _run_by_steps(layer, short_carry, more))
    assert_finite(gradient)
    require(np.all(np.asarray(gradient)[~mask] == 0), "Padding gets a gradient that is not zero.")
    require(np.all(np.any(np.asarray(gradient)[mask] != 0, -1)), "Inputs that are no padding get no gradient.")


@contract
def check_layer_causality(layer: Layer) -> None:
    """Checks that outputs depend on every input up to their step, and have exactly zero gradient in later ones."""
    inputs = np.asarray(_inputs(layer))
    weights = np.zeros_like(inputs)
    weights[3, 1] = 1
    gradient = np.asarray(_differentiate(_call, layer, None, inputs, weights)[1][1])
    require(np.all(gradient[4:] == 0), "Outputs depend on later inputs.")
    for step in range(4):
        require(np.any(gradient[step, 1] != 0), f"Outputs of step 3 do not depend on the input of step {step}.")


@contract
def check_layer_isolation(layer: Layer) -> None:
    """Checks that a change of one example leaves the outputs of the others bit-equal."""
    inputs = np.asarray(_inputs(layer))
    weights = np.ones_like(inputs)
    (_, outputs), _ = _differentiate(_call, layer, None, inputs, weights)
    other = inputs.copy()
    other[:, 1] = -7.0
    (_, changed), _ = _differentiate(_call, layer, None, other, weights)
    assert_equal(np.asarray(changed)[:, ::2], np.asarray(outputs)[:, ::2])


@contract
def check_layer_extremes(layer: Layer) -> None:
    """Checks that values and gradients are finite for inputs of 0 and 1,000, and for equal inputs at all steps."""
    inputs = np.asarray(_inputs(layer))
    thousand = np.asarray(1e3, inputs.dtype)
    for extreme in (np.zeros_like(inputs), thousand * inputs, np.broadcast_to(inputs[:1], inputs.shape)):
        assert_finite(_differentiate(_call, layer, None, extreme, np.ones_like(inputs)))


@contract
def check_layer_compilation(make_layer: Callable[..., Layer]) -> None:
    """Checks that new numbers, a returned carry, and a second, equal layer cause no recompilation.

    Args:
      make_layer: `make_layer(dtype=..., param_dtype=...)` returns the layer.
    """
    traces = []

    @jax.jit
    def trace(layer: Layer, carry: Any, inputs: Array) -> tuple[Any, Array]:
        traces.append(inputs.shape)
        return layer(carry, inputs)

    layer, equal = (nnx.eval_shape(partial(make_layer, dtype=jnp.float32, param_dtype=jnp.float32)) for _ in range(2))
    inputs = jax.ShapeDtypeStruct((T, B, layer.features), jnp.float32)
    carry = jax.eval_shape(lambda layer: layer.initialize_carry(inputs.shape[1:]), layer)
    carry, _ = trace.eval_shape(layer, carry, inputs)
    trace.eval_shape(equal, carry, inputs)
    require(len(traces) == 1, f"The layer was traced {len(traces)} times.")


@contract
def check_layer_devices(layer: Layer) -> None:
    """Checks that a batch divided over all devices gives the outputs and gradients of one device.

    The batch is divided by the compiler, and by `jax.shard_map` with its default checks.
    """
    devices = len(jax.devices())
    inputs = normal((T, devices, layer.features), _inputs(layer).dtype)
    counts = jnp.arange(1, devices + 1, dtype=inputs.dtype)  # every example counts differently

    def differentiate(layer: Layer, inputs: Array, counts: Array) -> tuple[Array, Array, list[Array]]:
        def value(layer: Layer, inputs: Array) -> tuple[Array, tuple[Any, Array]]:
            carry, outputs = layer(None, inputs)
            return jnp.sum(jnp.sin(outputs) * counts[None, :, None]), (carry, outputs)

        differentiated = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(layer, inputs[2:])
        (_, (carry, outputs)), (of_layer, of_inputs) = differentiated
        _, others = jax.lax.scan(lambda carry, now: layer.step(carry, now), carry, inputs[:2])
        return jnp.concatenate([outputs, others]), of_inputs, jax.tree.leaves(of_layer)

    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    every, batch, examples = PartitionSpec(), PartitionSpec(None, "data"), PartitionSpec("data")
    specs = (every, batch, examples)
    mapped = jax.shard_map(differentiate, mesh=mesh, in_specs=specs, out_specs=(batch, batch, every))
    given = (layer, inputs, counts)
    divided = [jax.device_put(part, NamedSharding(mesh, spec)) for part, spec in zip(given, specs, strict=True)]
    expected = jax.device_get(jax.jit(differentiate)(*given))
    for way in (differentiate, mapped):
        found = jax.jit(way)(*divided)
        shapes = {shard.data.shape[:2] for shard in found[0].addressable_shards}
        require(shapes == {(T, 1)}, f"The outputs of a divided batch must be divided, got shards of {shapes}.")
        assert_close(jax.device_get(found), expected)


def check_layer(make_layer: Callable[..., Layer]) -> None:
    """Checks all contracts of a layer of a sequence model; each of them can also be called separately.

    =========================  ====================================================================================
    contract                   statement
    =========================  ====================================================================================
    `check_layer_dtypes`       the carry keeps its shapes and dtypes; outputs have `dtype`, to which inputs are cast
    `check_layer_carry`        a fresh carry can be donated; one of another batch size or dtype is refused
    `check_layer_steps`        a sequence, its tokens one by one, and any division into calls and steps agree
    `check_layer_masking`      padding changes no output, carry or later step and gets exactly zero gradient
    `check_layer_causality`    outputs depend on every input up to their step, and on no later one
    `check_layer_isolation`    a change of one example leaves the others bit-equal
    `check_layer_extremes`     values and gradients are finite for extreme inputs
    `check_layer_compilation`  new numbers and a second, equal layer cause no recompilation
    `check_layer_devices`      a batch divided over devices, by `jax.shard_map` too, gives the numbers of one device
    =========================  ====================================================================================

    The contracts run sequences of 7 tokens: give the layer chunks of 3 tokens, so that several chunks occur.

    Args:
      make_layer: `make_layer(dtype=..., param_dtype=...)` returns the layer, with `features`, `initialize_carry`,
        `step` and the calling convention of `NeuralMemoryLayer`. `check_layer_dtypes` and `check_layer_compilation`
        take `make_layer`, the other contracts take a layer.

    Raises:
      AssertionError: if a contract does not hold; the message begins with the contract's name.

    Examples:
      >>> from flax import nnx
      >>> from mnm_jax import NeuralMemoryLayer, matrix_memory
      >>> def make_layer(dtype, param_dtype):
      ...     memory = matrix_memory(4, 4, "hebbian", param_dtype=param_dtype)
      ...     return NeuralMemoryLayer(8, memory, chunk=3, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
      >>> check_layer(make_layer)
    """
    check_layer_dtypes(make_layer)
    check_layer_compilation(make_layer)
    layer = make_layer(dtype=jnp.float32, param_dtype=jnp.float32)
    check_layer_carry(layer)
    check_layer_extremes(layer)
    with jax.enable_x64(True):
        layer = make_layer(dtype=jnp.float64, param_dtype=jnp.float64)
        check_layer_steps(layer)
        check_layer_masking(layer)
        check_layer_causality(layer)
        check_layer_isolation(layer)
        check_layer_devices(layer)
