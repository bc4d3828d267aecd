"""Tests that optimisers treat a memory's slow parameters like any others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnm_jax import ChainCell, MNMCell, NeuralMemoryLayer, WriteOptions, gradient_memory, local_memory, unroll
from mnm_jax._params import ParamTree
from mnm_jax.memory import Pair

MODELS = {
    "cell": lambda rngs: MNMCell(3, 2, local_memory(2, 2, hidden_sizes=(3,)), rngs=rngs),
    "chain": lambda rngs: ChainCell(
        3, 2, gradient_memory(3, 3, hidden_sizes=()), entities=1, heads=1, hops=1, rngs=rngs
    ),
    "layer": lambda rngs: NeuralMemoryLayer(3, local_memory(2, 2, hidden_sizes=()), chunk=2, rngs=rngs),
}


def run(model):
    inputs = np.cos(np.arange(12, dtype=np.float32)).reshape(2, 2, 3)
    if isinstance(model, NeuralMemoryLayer):
        return model(None, inputs)[1]
    return unroll(model, None, inputs, form="plain")[1].features


@pytest.mark.parametrize("name", ["cell", "layer", pytest.param("chain", marks=pytest.mark.slow)])
def test_the_optimiser_of_flax_trains_them_as_optax_does(name):
    """Over several updates of Adam, which keeps averages in the shape of the parameters."""
    model, by_hand = (MODELS[name](nnx.Rngs(0)) for _ in range(2))
    before = jax.tree.leaves(model.memory_params.get_value())
    gradient = jax.grad(lambda model: jnp.mean(jnp.square(run(model) - 1)))
    with jax.numpy_dtype_promotion("standard"):
        optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
        adam = optax.adam(1e-2)
        state = adam.init(by_hand)

        @nnx.jit
        def update(model, optimizer, by_hand, state):
            optimizer.update(model, nnx.state(gradient(model)))
            updates, state = adam.update(gradient(by_hand), state)
            return optax.apply_updates(by_hand, updates), state

        for _ in range(3):
            by_hand, state = update(model, optimizer, by_hand, state)
    after = jax.tree.leaves(model.memory_params.get_value())
    for old, new, expected in zip(before, after, jax.tree.leaves(by_hand.memory_params.get_value()), strict=True):
        np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)
        assert np.any(old != new)


def test_names_are_whole_and_differ():
    tree = {"query": jnp.zeros(1), "value": jnp.ones(2), "pair": Pair(jnp.ones(3), jnp.ones(4))}
    assert ParamTree(tree).names == ("pair.inputs", "pair.delta", "query", "value")
    with pytest.raises(ValueError, match="must differ, got 'a.b' twice: rename a key with a dot"):
        ParamTree({"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}})


@pytest.mark.parametrize("name", ["names", "structure", "get_value", "train"])
def test_a_name_that_would_hide_an_attribute_is_refused(name):
    with pytest.raises(ValueError, match=f"must not be named '{name}', an attribute of ParamTree: rename its key"):
        ParamTree({name: jnp.ones(2)})
    assert ParamTree({"a": {name: jnp.ones(2)}}).names == (f"a.{name}",)


def test_a_tree_comes_back_as_it_was_and_takes_one_of_its_structure_alone():
    tree = {"a": (jnp.zeros(2), None), "b": [jnp.ones(3)]}
    params = ParamTree(tree)
    assert jax.tree.structure(params.get_value()) == jax.tree.structure(tree)
    params.set_value(jax.tree.map(lambda x: x + 1, tree))
    np.testing.assert_array_equal(params.get_value()["b"][0], np.full(3, 2.0))
    assert sorted(nnx.to_flat_state(nnx.state(params)).paths) == [("a[0]",), ("b[0]",)]
    with pytest.raises(ValueError, match="Dict key mismatch"):
        params.set_value({"a": (jnp.zeros(2), None)})
    with pytest.raises(ValueError, match=r"b\[0\] must have the shape \(3,\), got \(4,\): use params of equal sizes"):
        params.set_value({"a": (jnp.ones(2), None), "b": [jnp.ones(4)]})
    np.testing.assert_array_equal(params.get_value()["a"][0], np.ones(2))  # nothing was replaced


def test_parameters_of_another_dtype_are_refused():
    """They would otherwise make the fast weights float16, or integers."""
    cell = MNMCell(3, 2, local_memory(2, 2, hidden_sizes=()), rngs=nnx.Rngs(0))
    params = cell.memory_params.get_value()
    for dtype in (jnp.float16, jnp.int32):
        with pytest.raises(
            ValueError, match=rf"weights\[0\] must have the dtype float32, got {jnp.dtype(dtype)}: use astype"
        ):
            cell.memory_params.set_value(jax.tree.map(lambda leaf: leaf.astype(dtype), params))  # noqa: B023
    cell.memory_params.set_value(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) + 1, params))  # as float32
    np.testing.assert_allclose(cell.memory_params.get_value().weights[0], params.weights[0] + 1, rtol=1e-6)


def test_parameters_of_another_rule_and_of_a_single_head_are_refused():
    memory, other = local_memory(2, 2, hidden_sizes=()), gradient_memory(2, 2, hidden_sizes=())
    cell = MNMCell(3, 2, memory, rngs=nnx.Rngs(0))
    message = r"params must have the arrays weights\[0\], targets.kernel, targets.bias, got weights\[0\]: use the init"
    with pytest.raises(ValueError, match=message):
        cell.memory_params.set_value(other.init(jax.random.key(0)))
    layer = NeuralMemoryLayer(3, memory, heads=2, rngs=nnx.Rngs(0))
    heads = [memory.init(jax.random.key(seed)) for seed in range(2)]
    with pytest.raises(
        ValueError, match=r"the shape \(2, 2, 2\), got \(2, 2\): use params of equal sizes; if these are of one head"
    ):
        layer.memory_params.set_value(heads[0])
    layer.memory_params.set_value(jax.tree.map(lambda *leaves: jnp.stack(leaves), *heads))
    np.testing.assert_array_equal(layer.memory_params.get_value().weights[0][1], heads[1].weights[0])


@pytest.mark.parametrize(
    ("options", "forms"),
    [(WriteOptions(), ("plain", "reversible", "factored")), (WriteOptions(forget=True, momentum=True), ("plain",))],
    ids=["paper", "gated"],
)
def test_parameters_cast_to_bfloat16_leave_the_fast_weights_in_float32(options, forms):
    """The loss is that of rounded parameters, and every form has its gradients, rounded to 8 bits."""
    memory = local_memory(2, 2, hidden_sizes=(3,), options=options)
    cell, inputs = MNMCell(3, 2, memory, heads=2, rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (4, 2, 3))

    def differentiate(cell, form):
        def loss(cell):
            carry, outputs = unroll(cell, None, inputs, form=form)
            return jnp.mean(outputs.features**2) + jnp.sum(carry.memory.weights[0] ** 2), carry

        (value, carry), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(cell)
        return value, carry, [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(gradient)]

    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), cell)
    value, _, gradient = differentiate(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half), "plain")
    for form in forms:
        found, carry, of_half = differentiate(half, form)
        assert {leaf.dtype for leaf in jax.tree.leaves(carry)} == {jnp.dtype(jnp.float32)}
        np.testing.assert_allclose(found, value, rtol=1e-5)
        for a, b in zip(of_half, gradient, strict=True):
            np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max())


def test_fast_weights_are_never_narrower_than_param_dtype():
    """Wider parameters, as in a check in float64, keep their precision; a state that would lose writes is refused."""
    memory = local_memory(2, 2, hidden_sizes=(3,))
    with jax.enable_x64(True):
        layer = NeuralMemoryLayer(3, memory, rngs=nnx.Rngs(0))
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), layer)
        weights = jax.tree.leaves(wide.initialize_carry((1, 3)).memory)
        assert {leaf.dtype for leaf in weights if jnp.issubdtype(leaf.dtype, jnp.floating)} == {jnp.dtype(jnp.float64)}
    params = memory.init(jax.random.key(0))
    state = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), memory.start(params, 1))
    with pytest.raises(TypeError, match="fast weights must have the memory's param_dtype float32, got .* bfloat16"):
        memory.read(params, state, jnp.ones((1, 1, 2)))
