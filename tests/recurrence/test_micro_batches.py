"""Tests value and gradient in micro-batches: equal to the whole batch, on several devices, and refused cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import LSTMCell, MNMCell, choose_micro_batch, local_memory, unroll, value_and_grad
from mnm_jax.recurrence._micro_batches import _divide


def batch_of(count):
    """Returns inputs [T, B, D], a mask [B, T] whose rows differ in length, and a key per example."""
    mask = jnp.arange(5)[None] < 1 + jnp.arange(count)[:, None] % 5
    inputs = jax.random.normal(jax.random.key(0), (5, count, 2), jnp.float64)
    return inputs, mask, jax.random.split(jax.random.key(1), count)


def total(params, inputs, mask, keys, weight):
    """Returns a sum over unmasked steps; outputs: a sum, per example, per step and example, a number of steps."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (5,), jnp.float64))(keys)
    y = jnp.where(mask.T, jnp.tanh(inputs @ params["w"] + params["b"] + noise.T), 0)
    value = jnp.sum(y**2) * weight
    return value, {"total": jnp.sum(y), "lasts": y[-1], "steps": [y], "count": jnp.sum(mask)}


def average(params, inputs, keys):
    mask = jnp.ones(inputs.shape[1::-1], bool)
    value, outputs = total(params, inputs, mask, keys, 1.0)
    count = inputs.shape[1]
    return value / count, {"total": outputs["total"] / count, "lasts": outputs["lasts"]}


def assert_equal(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), found, expected)


@pytest.mark.parametrize(
    "count, micro_batch, devices",
    [
        (7, 3, 1),
        (14, 3, 2),
        (0, 3, 2),  # a sum is zero, a mean is not a number
        *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in [(6, 2, 1), (7, None, 1), (8, None, 8), (7, 2, 2)]),
    ],
)
def test_value_gradient_and_outputs_are_those_of_the_whole_batch(count, micro_batch, devices, x64):
    """Sums over unmasked steps are divided by their number in the whole batch; 7 examples leave a rest."""
    inputs, mask, keys = batch_of(count)
    params = {"w": jnp.array([0.3, -0.7], jnp.float64), "b": jnp.array(0.1, jnp.float64)}
    options = {"has_aux": True, "micro_batch": micro_batch, "devices": jax.devices()[:devices]}
    summed = value_and_grad(total, batch_axis=(1, 0, 0, None), reduction="sum", **options)
    averaged = value_and_grad(average, batch_axis=(1, 0), reduction="mean", **options)
    weight = lambda mask: 1 / jnp.sum(mask, dtype=jnp.float64)  # noqa: E731

    def program(sums, means):
        return jax.jit(lambda: (sums(params, inputs, mask, keys, weight(mask)), means(params, inputs, keys)))()

    assert_equal(
        program(summed, averaged),
        program(jax.value_and_grad(total, has_aux=True), jax.value_and_grad(average, has_aux=True)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_memory_is_trained_with_the_same_gradient_and_second_derivative(devices, x64):
    """Parameters are the state of `nnx.split`; the second derivative is the gradient of the gradient's square norm."""
    memory = local_memory(2, 2, hidden_sizes=(2,), param_dtype=jnp.float64)
    cell = MNMCell(2, 3, memory, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(cell)
    inputs, mask, _ = batch_of(6)

    def loss(params, batch):
        outputs = unroll(nnx.merge(graphdef, params), None, batch["x"], mask=batch["mask"])[1]
        return jnp.sum(outputs.features**2) + jnp.sum(outputs.meta_loss)

    def both(gradient_of):
        def norm(params):
            value, gradient = gradient_of(params, {"x": inputs[:3], "mask": mask[:, :3].T})
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)), (value, gradient)

        return jax.jit(jax.value_and_grad(norm, has_aux=True))(params)

    parted = value_and_grad(loss, batch_axis=1, reduction="sum", micro_batch=2, devices=jax.devices()[:devices])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        both(parted),
        both(jax.value_and_grad(loss)),
    )


def test_micro_batches_stay_on_their_devices():
    """Example g of the first part of a divided batch is in one micro-batch with example g of the second part."""
    seen = []

    def loss(params, batch):
        jax.debug.callback(lambda x: seen.append(np.asarray(x[0]).tolist()), batch, ordered=True)
        return jnp.sum(params * batch)

    value_and_grad(loss, batch_axis=1, reduction="sum", micro_batch=2)(jnp.ones(()), jnp.arange(6.0)[None])
    jax.effects_barrier()
    assert seen == [[0, 3], [1, 4], [2, 5]]


def test_sizes_by_hand():
    """Three layers of 128 x 128 floats, twice: 384 KiB per example, so 4 MiB hold ten."""
    memory = local_memory(128, 128, hidden_sizes=(128, 128))
    cell = nnx.eval_shape(lambda: MNMCell(4, 128, memory, rngs=nnx.Rngs(0)))
    assert [choose_micro_batch(cell, platform) for platform in ("cpu", "tpu", None)] == [10, None, 10]
    assert choose_micro_batch(LSTMCell(4, 128, rngs=nnx.Rngs(0)), "cpu") is None
    divided = {count: _divide(count, 10) for count in (8, 16, 20, 64, 7, 67, 13)}
    equal = {8: [(1, 8)], 16: [(2, 8)], 20: [(2, 10)], 64: [(8, 8)], 7: [(1, 7)]}
    assert divided == equal | {67: [(6, 10), (1, 7)], 13: [(1, 10), (1, 3)]}
    assert (_divide(33, 32), _divide(9, 8)) == ([(1, 32), (1, 1)], [(1, 8), (1, 1)])  # 3 x 11, 3 x 3: under half
    assert all(
        sum(n * size for n, size in _divide(count, most)) == count for count in range(1, 40) for most in range(1, 9)
    )


X, KEY = jnp.ones((3, 4)), jax.random.key(0)


def sums(params, *batch):
    return params * sum(jnp.sum(jnp.asarray(leaf, jnp.float32)) for leaf in batch[:1])


@pytest.mark.parametrize(
    "loss, batch, options, error, message",
    [
        (sums, (X,), {"reduction": "max"}, ValueError, "reduction must be one of 'sum', 'mean', got 'max'"),
        (sums, (X,), {"micro_batch": 0}, ValueError, "micro_batch must be >= 1, got 0"),
        (1, (X,), {}, TypeError, "loss must be a function, got 1"),
        (sums, (X, KEY), {"batch_axis": (1, None)}, TypeError, r"batch\[1\] must not be shared .* jax.random.split"),
        (sums, (X, X.T), {}, ValueError, r"same number of examples, got batch\[0\]: 4, batch\[1\]: 3"),
        (sums, (X, X), {"batch_axis": (1,)}, ValueError, r"batch_axis must be .* of the 2 arguments .*, got \(1,\)"),
        (sums, (X,), {"batch_axis": {"x": 1}}, ValueError, "batch_axis must be an axis, or a tuple .*, got {'x': 1}"),
        (sums, (X,), {"batch_axis": (None,)}, ValueError, "same number of examples, got no array"),
        (sums, (X,), {"batch_axis": 2}, ValueError, r"must be an axis of every array, got 2 for batch\[0\] \(3, 4\)"),
        (
            lambda params, x: (params, jnp.int32(1)),
            (X,),
            {"reduction": "mean", "has_aux": True},
            TypeError,
            "output '' of dtype int32 has no mean over micro-batches",
        ),
        (
            lambda params, x: (params, {"gram": x.T @ x}),
            (X,),
            {"has_aux": True},
            ValueError,
            r"output 'gram' must have one axis of examples, got shape \(4, 4\)",
        ),
        (
            lambda params, x: (params, x.ravel()),
            (X,),
            {"has_aux": True},
            ValueError,
            r"output '' must have an axis of the 4 examples alone, got shape \(12,\): return it before a reshape",
        ),
        (
            lambda params, x, key: params,
            (X, jax.random.PRNGKey(0)),
            {"batch_axis": (0, None)},
            TypeError,
            r"the random key batch\[1\] must not be shared by the examples",
        ),
        (lambda params, x: params, (X,), {"devices": 2}, TypeError, "devices must be a list of devices.*got 2"),
        (lambda params, x: params, (X,), {"devices": ["cpu"]}, TypeError, "devices must be a list of devices"),
    ],
)  # fmt: skip
def test_what_would_be_silently_different_is_refused(loss, batch, options, error, message):
    with pytest.raises(error, match=message):
        value_and_grad(loss, **{"batch_axis": 1, "reduction": "sum", "micro_batch": 2} | options)(1.0, *batch)


def test_a_users_shard_map_may_surround_it(x64):
    """With the default checks, value and gradient have the axes that `jax.value_and_grad` gives them."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    spec = jax.sharding.PartitionSpec

    def loss(w, x):
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    def run(function):
        own = lambda w, x: (jax.lax.psum((out := function(w, x))[0], "d"), out[1])  # noqa: E731
        return jax.shard_map(own, mesh=mesh, in_specs=(spec(), spec("d")), out_specs=spec())

    w, x = jnp.arange(6.0).reshape(3, 2) / 9, jnp.arange(24.0).reshape(8, 3) / 9
    parted = value_and_grad(loss, batch_axis=0, reduction="sum", micro_batch=2)
    found, expected = (jax.jit(run(f))(w, x) for f in (parted, jax.value_and_grad(loss)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)
