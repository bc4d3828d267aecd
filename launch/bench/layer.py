"""Benchmark of the layer: a sequence in chunks against the same function token by token."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from launch.bench.measure import Candidate, Group, Program, compile_program, with_ratios
from mnm_jax import NeuralMemoryLayer, WriteOptions, gradient_memory, local_memory, matrix_memory

_SIZE = 64  # features of keys, values and the hidden layer
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
_FORMS = ("steps", "chunks", "maps")
_AXIS = "batch"


def layer(
    devices: Sequence[jax.Device],
    *,
    memories: Sequence[str] = tuple(MEMORIES),
    passes: Sequence[str] = ("forward", "training"),
    steps: Sequence[int] = (512, 2048),
    batch: int = 4,
    features: int = 256,
    heads: int = 4,
    chunk: int = 32,
) -> Iterator[Group]:
    """Yields one group per memory, pass and length: the layer over a sequence, in three forms.

    The pass "forward" computes the outputs, "training" value and gradient of their mean square. The form "steps" is a
    scan over `NeuralMemoryLayer.step`, differentiated by JAX; "chunks" is `NeuralMemoryLayer.__call__`; "maps" is what
    both compute besides the memory: the linear maps to keys, values and queries and to the output. Heads have keys and
    values of 64 features. Every form divides the batch over the same devices: the largest number that divides it.

    Args:
      devices: devices to run on.
      memories: names of memories in `MEMORIES`.
      passes: passes to measure: "forward", "training".
      steps: lengths `T`.
      batch: number of examples `B`.
      features: number of features of the layer's inputs.
      heads: number of memories.
      chunk: tokens per chunk.
    """
    for name in memories:
        for run in passes:
            for t in steps:
                fields = {"memory": name, "pass": run, "steps": t, "batch": batch, "width": features, "heads": heads}
                prepare = partial(_prepare, devices, fields, chunk)
                candidates = [Candidate(fields | {"form": form}, partial(prepare, form)) for form in _FORMS]
                yield Group(candidates, partial(with_ratios, field="form", reference="steps"))


def _prepare(devices: Sequence[jax.Device], fields: Mapping[str, Any], chunk: int, form: str) -> Program:
    devices = devices[: max(n for n in range(1, len(devices) + 1) if fields["batch"] % n == 0)]
    mesh = jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    settings = MEMORIES[fields["memory"]] | {"heads": fields["heads"], "chunk": chunk}
    graphdef, params = nnx.split(NeuralMemoryLayer(fields["width"], **settings, rngs=nnx.Rngs(0)))
    inputs = jax.random.normal(jax.random.key(0), (fields["steps"], fields["batch"], fields["width"]))

    def outputs(params: Any, inputs: jax.Array) -> jax.Array:
        layer = nnx.merge(graphdef, params)
        if form == "chunks":
            return layer(None, inputs)[1]
        if form == "maps":
            keys, values, queries = jnp.split(layer.to_vectors(inputs), 3, axis=-1)
            return layer.to_output(keys * queries + values)
        return jax.lax.scan(layer.step, layer.initialize_carry(inputs.shape[1:]), inputs)[1]

    def train(params: Any, inputs: jax.Array) -> Any:
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
