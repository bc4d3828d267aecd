"""Tests the chained cell with weights set by hand, so that its answers are known in advance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from flax import nnx

from mnm_jax import ChainCell, MNMCell, NeuralMemoryLayer, gradient_memory, local_memory, unroll

V = 8
# Rows of a Hadamard matrix except the first: orthogonal, mean zero, variance one, so that norm does not change them.
GREG, JULIUS, SWAN, GREEN, NOTHING = *scipy.linalg.hadamard(V)[1:5].astype(np.float32), np.zeros(V, np.float32)


def cell_by_hand(make_memory, hops, gates):
    """Returns a cell with one head, two entities, rate one and one relation; `gates [N + 1, 2 + N]` are constant."""
    memory = make_memory(2 * V, V, hidden_sizes=())
    cell = ChainCell(2 * V, 4, memory, entities=2, heads=1, hops=hops, rngs=nnx.Rngs(0))
    for linear in (cell.relations, cell.gates, cell.rate):
        linear.kernel[...] = jnp.zeros_like(linear.kernel[...])
    cell.gates.bias[...] = jnp.asarray(gates, jnp.float32).ravel()
    cell.rate.bias[...] = jnp.full(1, 20.0)
    weights = [jnp.zeros_like(weight) for weight in jax.tree.leaves(cell.memory_params.get_value().weights)]
    tree = jax.tree.structure(cell.memory_params.get_value().weights)
    cell.memory_params.set_value(cell.memory_params.get_value()._replace(weights=jax.tree.unflatten(tree, weights)))
    return cell


def found(cell, *steps):
    """Returns the answers `[N, V]` of the last of the given steps."""
    x = np.stack([np.concatenate(step) for step in steps])[:, None]
    _, outputs = jax.jit(unroll)(cell, None, x)
    return np.asarray(outputs.features)[-1, 0, -cell.hops * V :].reshape(cell.hops, V)


@pytest.mark.parametrize("make_memory", [local_memory, gradient_memory])
def test_a_chain_of_two_facts_is_followed_within_one_step(make_memory):
    """Greg is a swan; swans are green; the question about Greg finds "swan", then "green"."""
    second_hop, under, value = [0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]
    cell = cell_by_hand(make_memory, 2, [second_hop, under, value])
    answers = found(cell, (GREG, SWAN), (SWAN, GREEN), (GREG, NOTHING))
    np.testing.assert_allclose(answers, [SWAN, GREEN], atol=0.01)


@pytest.mark.parametrize("make_memory", [local_memory, gradient_memory])
def test_a_fact_is_written_under_what_was_found(make_memory):
    """Julius is a swan; he is green. The second fact is written under his kind, so that swans are green."""
    under, value = [0, 0, 1], [0, 1, 0]
    named, known = cell_by_hand(make_memory, 1, [[1, 0, 0], value]), cell_by_hand(make_memory, 1, [under, value])

    advance = jax.jit(lambda cell, carry, x: cell(carry, x))
    carry = known.initialize_carry((1, 2 * V))
    for cell, step in ((named, (JULIUS, SWAN)), (known, (JULIUS, GREEN)), (named, (GREG, SWAN))):
        carry, _ = advance(cell, carry, np.concatenate(step)[None])
    for asked, answer in ((GREG, SWAN), (SWAN, GREEN), (JULIUS, SWAN)):
        _, output = advance(known, carry, np.concatenate((asked, NOTHING))[None])
        np.testing.assert_allclose(np.asarray(output.features)[0, -V:], answer, atol=0.01)


def test_at_the_start_a_step_relates_its_first_two_entities_both_ways():
    memory = local_memory(4 * V, V, hidden_sizes=())
    cell = ChainCell(3 * V, 16, memory, entities=3, heads=2, hops=2, rngs=nnx.Rngs(0))
    x = np.concatenate([GREG, SWAN, GREEN])[None]
    trace = jax.device_get(jax.jit(lambda cell, x: cell(cell.initialize_carry(x.shape), x)[1].trace)(cell, x))
    like = np.corrcoef([*trace.write_values[0], GREG, SWAN, GREEN])[:2, 2:]
    assert like.argmax(1).tolist() == [1, 0]
    assert like.max(1).min() > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entities": 1, "heads": 2}, "heads must be <= entities, got heads=2, entities=1"),
        ({"entities": 3}, r"in_features must be >= entities \* value_size = 24, the codes, got 16"),
        ({"entities": 0}, "entities must be >= 1, got 0"),
        ({"entities": 2, "hops": 0}, "hops must be >= 1, got 0"),
    ],
)
def test_sizes_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        ChainCell(2 * V, 4, local_memory(2 * V, V, hidden_sizes=()), **options, rngs=nnx.Rngs(0))


def test_a_key_is_entity_by_relation():
    with pytest.raises(ValueError, match="key_size must be a multiple of value_size, got key_size=9, value_size=8"):
        ChainCell(2 * V, 4, local_memory(9, V, hidden_sizes=()), entities=2, rngs=nnx.Rngs(0))


def test_a_memory_by_its_name_is_refused():
    message = "memory must be a Memory, got 'mnm-p': make one with local_memory or another factory"
    with pytest.raises(TypeError, match=message):
        ChainCell(2 * V, 4, "mnm-p", entities=2, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=message):
        MNMCell(3, 4, "mnm-p", rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=message):
        NeuralMemoryLayer(4, "mnm-p", rngs=nnx.Rngs(0))
