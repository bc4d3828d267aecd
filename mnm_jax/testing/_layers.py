"""Contracts of a layer `(carry, inputs [T, B, D]) -> (carry, outputs [T, B, D])` with a `step` for one token.

Shape letters: `T` time steps, `B` examples, `D` features.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mnm_jax.testing._contract import (
    assert_close,
    assert_equal,
    assert_finite,
    contract,
    kinds,
    normal,
    require,
    sum_of_sines,
)

Array = jax.Array
Layer = Any  # a module with the interface of `NeuralMemoryLayer`; see `check_layer`
T, B = 7, 3


def _inputs(layer: Layer, steps: int = T) -> Array:
    """Returns random inputs `[T, B, D]` in the dtype of the layer's outputs."""
    tokens = jax.ShapeDtypeStruct((1, B, layer.features), jnp.float32)
    dtype = jax.eval_shape(lambda tokens: layer(None, tokens)[1], tokens).dtype
    return normal((steps, B, layer.features), dtype)


@jax.jit
def _run(layer: Layer, carry: Any, inputs: Array, mask: Array | None = None) -> tuple[Any, Array]:
    return layer(carry, inputs, mask=mask)


@jax.jit
def _run_by_steps(layer: Layer, carry: Any, inputs: Array) -> tuple[Any, Array]:
    carry, first = layer.step(carry, inputs[0])
    carry, others = jax.lax.scan(lambda carry, now: layer.step(carry, now), carry, inputs[1:])
    return carry, jnp.concatenate([first[None], others])


@jax.jit
def _gradient_of_one_answer(layer: Layer, inputs: Array) -> Array:
    """Returns the derivative of the outputs of example 1 at step 3 with respect to all inputs."""
    return jax.grad(lambda inputs: jnp.sum(_run(layer, None, inputs)[1][3, 1]))(inputs)


@contract
def check_layer_dtypes(make_layer: Callable[..., Layer]) -> None:
    """Checks that the carry keeps its shapes and dtypes, and that outputs have `dtype`, to which inputs are cast.

    Args:
      make_layer: `make_layer(dtype=..., param_dtype=...)` returns the layer.
    """
    for param_dtype, dtype in [(jnp.float32,) * 2, (jnp.bfloat16,) * 2, (jnp.float32, jnp.bfloat16)]:
        layer = make_layer(dtype=dtype, param_dtype=param_dtype)
        carry = layer.initialize_carry((B, layer.features))
        for leaf in jax.tree.leaves(carry):
            require(leaf.shape[:1] == (B,), f"Leaves of the carry must have shape [B, ...], got {leaf.shape}.")
        for given in (dtype, jnp.float32):
            tokens = jnp.zeros((T, B, layer.features), given)
            for way, inputs in [(layer, tokens), (layer.step, tokens[0])]:
                new, outputs = jax.eval_shape(way, carry, inputs)
                require(kinds(new) == kinds(carry), f"The carry changes from {kinds(carry)} to {kinds(new)}.")
                expected = (inputs.shape, jnp.dtype(dtype))
                require(kinds(outputs) == expected, f"Outputs must be {expected}, got {kinds(outputs)}.")


@contract
def check_layer_steps(layer: Layer) -> None:
    """Checks that a whole sequence, its tokens one by one, and a sequence continued by single tokens agree.

    Values and gradients are compared. In each case a carry of None begins a new sequence.
    """
    inputs = _inputs(layer)

    def cut(layer: Layer, carry: Any, inputs: Array) -> tuple[Any, Array]:
        carry, first = layer(carry, inputs[:3])
        carry, second = _run_by_steps(layer, carry, inputs[3:])
        return carry, jnp.concatenate([first, second])

    def differentiate(way: Callable, carry: Any) -> Any:
        def value(layer: Layer, inputs: Array) -> tuple[Array, Any]:
            result = way(layer, carry, inputs)
            return sum_of_sines(result[1]), result

        (_, result), gradients = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(layer, inputs)
        return result, jax.tree.leaves(gradients)

    expected = differentiate(_run, None)
    assert_close(differentiate(_run_by_steps, None), expected)
    assert_close(differentiate(cut, None), expected)
    assert_close(_run(layer, layer.initialize_carry(inputs.shape[1:]), inputs), _run(layer, None, inputs))


@contract
def check_layer_masking(layer: Layer) -> None:
    """Checks that padding at the end, NaN included, changes nothing that follows and gets exactly zero gradient."""
    inputs, more = _inputs(layer), _inputs(layer, steps=2)
    mask = np.ones((T, B), bool)
    mask[5:, 0] = False
    padded = jnp.where(mask[..., None], inputs, jnp.nan)
    carry, outputs = _run(layer, None, padded, mask)
    short_carry, expected = _run(layer, None, inputs[:5])
    assert_close(outputs[:5, 0], expected[:, 0])
    require(np.all(np.asarray(outputs[5:, 0]) == 0), "Outputs of padding must be zero.")
    assert_close(_run(layer, carry, more)[1][:, 0], _run(layer, short_carry, more)[1][:, 0])
    gradient = np.asarray(jax.grad(lambda inputs: sum_of_sines(_run(layer, None, inputs, mask)))(padded))
    assert_finite(gradient)
    require(np.all(gradient[5:, 0] == 0), "Padding gets a gradient that is not zero.")
    require(np.all(np.any(gradient[:, 1:] != 0, axis=-1)), "Inputs that are no padding get no gradient.")


@contract
def check_layer_causality(layer: Layer) -> None:
    """Checks that outputs depend on every input up to their step, and have exactly zero gradient in later ones."""
    gradient = np.asarray(_gradient_of_one_answer(layer, _inputs(layer)))
    require(np.all(gradient[4:] == 0), "Outputs depend on later inputs.")
    for step in range(4):
        require(np.any(gradient[step, 1] != 0), f"Outputs of step 3 do not depend on the input of step {step}.")


@contract
def check_layer_isolation(layer: Layer) -> None:
    """Checks that a change of one example leaves the outputs of the others bit-equal."""
    inputs = _inputs(layer)
    changed = _run(layer, None, inputs.at[:, 1].set(-7.0))[1]
    assert_equal(changed[:, ::2], _run(layer, None, inputs)[1][:, ::2])


@contract
def check_layer_extremes(layer: Layer) -> None:
    """Checks that values and gradients are finite for inputs of 0 and 1,000, and for equal inputs at all steps."""
    inputs = _inputs(layer)
    differentiate = jax.jit(
        jax.value_and_grad(lambda layer, inputs: jnp.sum(_run(layer, None, inputs)[1]), argnums=(0, 1))
    )
    for extreme in (0 * inputs, 1e3 * inputs, jnp.broadcast_to(inputs[:1], inputs.shape)):
        assert_finite(differentiate(layer, extreme))


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

    layer, equal = (make_layer(dtype=jnp.float32, param_dtype=jnp.float32) for _ in range(2))
    inputs = _inputs(layer)
    carry, _ = trace(layer, layer.initialize_carry(inputs.shape[1:]), inputs)
    trace(jax.tree.map(lambda leaf: 0.5 * leaf, equal), carry, 2 * inputs)
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
    `check_layer_steps`        a sequence and its tokens one by one agree, in values and gradients
    `check_layer_masking`      padding at the end changes nothing and gets exactly zero gradient
    `check_layer_causality`    outputs depend on every input up to their step, and on no later one
    `check_layer_isolation`    a change of one example leaves the others bit-equal
    `check_layer_extremes`     values and gradients are finite for extreme inputs
    `check_layer_compilation`  new numbers and a second, equal layer cause no recompilation
    `check_layer_devices`      a batch divided over devices, by `jax.shard_map` too, gives the numbers of one device
    =========================  ====================================================================================

    The contracts run sequences of 7 tokens: give the layer chunks of 4 tokens or fewer, so that several chunks occur.

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
    check_layer_extremes(make_layer(dtype=jnp.float32, param_dtype=jnp.float32))
    with jax.enable_x64(True):
        layer = make_layer(dtype=jnp.float64, param_dtype=jnp.float64)
        check_layer_steps(layer)
        check_layer_masking(layer)
        check_layer_causality(layer)
        check_layer_isolation(layer)
        check_layer_devices(layer)
