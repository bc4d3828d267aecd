"""Benchmark of the layer: a sequence in chunks against the same function token by token, and against other models."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from launch.bench.attention import HEAD_SIZE, Attention
from launch.bench.measure import Candidate, Group, Program, compile_program, dividing, with_ratios
from mnm_jax import LSTMCell, NeuralMemoryLayer, WriteOptions, gradient_memory, local_memory, matrix_memory, unroll

Array = jax.Array

_SIZE = HEAD_SIZE  # features of keys, values and the hidden layer
_UNIT_KEYS = WriteOptions(key_norm="l2")
_GRADIENT = gradient_memory(
    _SIZE, _SIZE, hidden_sizes=(_SIZE,), options=_UNIT_KEYS._replace(forget=True, momentum=True)
)
# Settings of `NeuralMemoryLayer`.
MEMORIES: dict[str, dict[str, Any]] = {
    "delta rule": {"memory": matrix_memory(_SIZE, _SIZE, options=_UNIT_KEYS)},
    "local, two layers": {
        "memory": local_memory(_SIZE, _SIZE, hidden_sizes=(_SIZE,), options=_UNIT_KEYS._replace(forget=True))
    },
    "gradient, two layers": {"memory": _GRADIENT},
    # With the normalised step, since the plain one overflows in an untrained layer.
    "titans": {"memory": _GRADIENT, "stale": True},
}
MODELS = ("delta rule", "local, two layers", "gradient, two layers", "softmax attention", "LSTM")
_AXIS = "batch"


def layer(
    devices: Sequence[jax.Device],
    *,
    memories: Sequence[str] = tuple(MEMORIES),
    passes: Sequence[str] = ("forward", "training"),
    steps: Sequence[int] = (512, 2048),
    models: Sequence[str] = MODELS,
    lengths: Sequence[int] = (2048, 4096, 8192),
    batch: int = 4,
    features: int = 256,
    heads: int = 4,
    chunk: int = 32,
) -> Iterator[Group]:
    """Yields one group per memory, pass and length, with the layer in three forms, and one per length, with all models.

    The pass "forward" computes the outputs, "training" value and gradient of their mean square. The form "steps" is a
    scan over `NeuralMemoryLayer.step`, differentiated by JAX; "chunks" is `NeuralMemoryLayer.__call__`; "maps" is what
    both compute besides the memory: the linear maps to keys, values and queries and to the output. Heads have keys and
    values of 64 features. Every form divides the batch over the same devices: the largest number that divides it.

    The group of all models has value and gradient of the layer in chunks, of causal softmax attention with the same
    number of heads of 64 features, and of an LSTM of the same width. On a CPU attention stores all T x T weights.

    Args:
      devices: devices to run on.
      memories: names of memories in `MEMORIES`.
      passes: passes to measure: "forward", "training".
      steps: lengths `T` of the forms.
      models: models to compare: names in `MEMORIES`, "softmax attention", "LSTM".
      lengths: lengths `T` of the models.
      batch: number of examples `B`.
      features: number of features of the layer's inputs.
      heads: number of memories.
      chunk: tokens per chunk.
    """
    sizes = {"batch": batch, "width": features, "heads": heads}
    for name in memories:
        for run in passes:
            for t in steps:
                fields = {"memory": name, "pass": run, "steps": t} | sizes
                prepare = partial(_prepare, devices, fields, _make(name, fields, chunk))
                candidates = [Candidate(fields | {"form": form}, partial(prepare, _FORMS[form])) for form in _FORMS]
                yield Group(candidates, partial(with_ratios, field="form", reference="steps"))
    for t in lengths:
        candidates = []
        for name in models:
            fields = {"model": name, "pass": "training", "steps": t} | sizes
            prepare = partial(_prepare, devices, fields, _make(name, fields, chunk), _MODELS.get(name, _by_chunks))
            candidates.append(Candidate(fields, prepare))
        if candidates:
            yield Group(candidates, partial(with_ratios, field="model", reference="softmax attention"))


def _make(name: str, fields: Mapping[str, Any], chunk: int) -> Callable[[], nnx.Module]:
    """Returns the function that makes a model."""
    width, heads = fields["width"], fields["heads"]
    if name == "LSTM":
        return lambda: LSTMCell(width, width, rngs=nnx.Rngs(0))
    if name == "softmax attention":
        return lambda: Attention(width, heads, dtype=jnp.float32, rngs=nnx.Rngs(0))
    return lambda: NeuralMemoryLayer(width, heads=heads, chunk=chunk, rngs=nnx.Rngs(0), **MEMORIES[name])


def _by_steps(layer: Any, inputs: Array) -> Array:
    return jax.lax.scan(layer.step, layer.initialize_carry(inputs.shape[1:]), inputs)[1]


def _by_chunks(layer: Any, inputs: Array) -> Array:
    return layer(None, inputs)[1]


def _maps(layer: Any, inputs: Array) -> Array:
    keys, values, queries = jnp.split(layer.to_vectors(inputs), 3, axis=-1)
    return layer.to_output(keys * queries + values)


def _attend(attention: Any, inputs: Array) -> Array:
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention relies on it
        return attention(inputs, None)


_FORMS: dict[str, Callable[[Any, Array], Array]] = {"steps": _by_steps, "chunks": _by_chunks, "maps": _maps}
_MODELS: dict[str, Callable[[Any, Array], Array]] = {
    "softmax attention": _attend,
    "LSTM": lambda cell, inputs: unroll(cell, None, inputs)[1],
}


def _prepare(
    devices: Sequence[jax.Device],
    fields: Mapping[str, Any],
    make: Callable[[], nnx.Module],
    run: Callable[[Any, Array], Array],
) -> Program:
    devices = dividing(devices, fields["batch"])
    mesh = jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    graphdef, params = nnx.split(make())
    inputs = jax.random.normal(jax.random.key(0), (fields["steps"], fields["batch"], fields["width"]))

    def outputs(params: Any, inputs: Array) -> Array:
        return run(nnx.merge(graphdef, params), inputs)

    def train(params: Any, inputs: Array) -> Any:
        value = jax.value_and_grad(lambda params: jnp.mean(jnp.square(outputs(params, inputs))))
        return jax.lax.pmean(value(params), _AXIS)

    forward = fields["pass"] == "forward"
    along = P(None, _AXIS)
    function = jax.shard_map(
        outputs if forward else train,
        mesh=mesh,
        in_specs=(P(), along),
        out_specs=along if forward else P(),
        check_vma=False,
    )
    params = jax.device_put(params, NamedSharding(mesh, P()))
    inputs = jax.device_put(inputs, NamedSharding(mesh, along))
    return compile_program(function, (params, inputs), len(devices))
