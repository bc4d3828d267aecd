"""Tests that optimisers treat a memory's slow parameters like any others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnm_jax import ChainCell, MNMCell, NeuralMemoryLayer, gradient_memory, local_memory, unroll
from mnm_jax._params import ParamTree

MODELS = {
    "cell": lambda rngs: MNMCell(3, 6, local_memory(4, 4, hidden_sizes=(5,)), rngs=rngs),
    "chain": lambda rngs: ChainCell(6, 6, gradient_memory(6, 3, hidden_sizes=()), entities=2, rngs=rngs),
    "layer": lambda rngs: NeuralMemoryLayer(3, local_memory(4, 4, hidden_sizes=()), heads=2, chunk=2, rngs=rngs),
}


def run(model):
    if isinstance(model, NeuralMemoryLayer):
        return model(None, jax.random.normal(jax.random.key(0), (4, 2, 3)))[1]
    return unroll(model, None, jax.random.normal(jax.random.key(0), (4, 2, model.in_features)))[1].features


@pytest.mark.parametrize("name", MODELS)
def test_the_optimiser_of_flax_trains_them_as_optax_does(name):
    """Over several updates of Adam, which keeps averages in the shape of the parameters."""
    model, by_hand = (MODELS[name](nnx.Rngs(0)) for _ in range(2))
    before = jax.tree.leaves(model.memory_params.get_value())
    loss = lambda model: jnp.mean(jnp.square(run(model) - 1))  # noqa: E731
    with jax.numpy_dtype_promotion("standard"):
        optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
        adam = optax.adam(1e-2)
        state = adam.init(by_hand)
        for _ in range(3):
            optimizer.update(model, nnx.grad(loss)(model))
            updates, state = adam.update(jax.grad(loss)(by_hand), state)
            by_hand = optax.apply_updates(by_hand, updates)
    after = jax.tree.leaves(model.memory_params.get_value())
    for old, new, expected in zip(before, after, jax.tree.leaves(by_hand.memory_params.get_value()), strict=True):
        np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)
        assert np.any(old != new)


def test_a_tree_comes_back_as_it_was_and_takes_one_of_its_structure_alone():
    tree = {"a": (jnp.zeros(2), None), "b": [jnp.ones(3)]}
    params = ParamTree(tree)
    assert jax.tree.structure(params.get_value()) == jax.tree.structure(tree)
    params.set_value(jax.tree.map(lambda x: x + 1, tree))
    np.testing.assert_array_equal(params.get_value()["b"][0], np.full(3, 2.0))
    assert sorted(nnx.to_flat_state(nnx.state(params)).paths) == [("a[0]",), ("b[0]",)]
    with pytest.raises(ValueError, match="Dict key mismatch"):
        params.set_value({"a": (jnp.zeros(2), None)})
