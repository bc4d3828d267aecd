"""Tests `MNMCell(follow_keys=True)`: keys that are rotated keys of the previous step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import MNMCell, local_memory, unroll

BITS, K = 2, 64
FLAG, COUNT, AFTER = range(BITS, BITS + 3)  # hidden units, after one per bit


@pytest.fixture(scope="module")
def copying_cell():
    """Returns a cell whose parameters are set by hand to copy vectors of bits; the angles keep their first values.

    The first write key and the first read key are set by the controller, and all others follow: g is 0 or 1.
    """
    memory = local_memory(K, BITS, hidden_sizes=())
    cell = jax.jit(lambda: MNMCell(BITS + 1, 5, memory, out_features=BITS, follow_keys=True, rngs=nnx.Rngs(0)))()
    maps = (cell.controller.dense_i, cell.controller.dense_h, cell.interaction, cell.rate, cell.follow, cell.readout)
    values = {linear: {name: np.zeros(p.shape, np.float32) for name, p in nnx.state(linear).items()} for linear in maps}
    inputs, gates, to_keys, rate, follow, readout = values.values()

    # Controller: h is tanh(1) times the bit, tanh(1) at the flag, tanh(t), and tanh(steps since the flag).
    i, f, g, o = np.split(gates["bias"], 4)
    i[:], f[:], o[:] = 50, -50, 50
    f[[COUNT, AFTER]] = 50
    inputs["kernel"][range(BITS), range(10, 10 + BITS)] = 50
    inputs["kernel"][BITS, 10 + FLAG] = 50
    g[[COUNT, AFTER]] = 50
    i[AFTER] = -50
    inputs["kernel"][BITS, AFTER] = 100
    # u: -1 or 1 for "not the first step", "the flag" and "after the flag"; then k^w, v^w and k^r, before their tanh.
    for place, (unit, threshold) in enumerate([(COUNT, 0.86), (FLAG, 0.5), (AFTER, 0.5)]):
        to_keys["kernel"][unit, place], to_keys["bias"][place] = 1000, -1000 * threshold
    first = np.full(K, 0.5)
    angles = np.pi / K * (2 * np.arange(K // 2) + 1)
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = np.split(first, 2)
    before = np.concatenate([cos * a + sin * b, cos * b - sin * a])  # R^-1 k, from which the read key follows
    to_keys["bias"][K : 2 * K] = np.arctanh(first)
    to_keys["kernel"][range(BITS), range(2 * K, 2 * K + BITS)] = 50
    to_keys["bias"][2 * K + BITS :] = np.arctanh(before)
    rate["kernel"][2, 0] = -100  # nothing is written at the flag or after it
    follow["kernel"][0, 0] = 100
    follow["kernel"][1, 1] = -100
    readout["kernel"][5:] = np.eye(BITS)
    for linear in maps:
        for name, value in values[linear].items():
            getattr(linear, name).set_value(jnp.asarray(value))
    return cell


@pytest.mark.parametrize("length", [3, 60])
def test_a_cell_set_by_hand_copies_at_any_length_up_to_the_size_of_a_key(copying_cell, length):
    vectors = np.random.default_rng(0).choice([-1.0, 1.0], (length, 2, BITS)).astype(np.float32)
    x = np.zeros((2 * length + 1, 2, BITS + 1), np.float32)
    x[:length, :, :BITS] = vectors
    x[length, :, BITS] = 1
    _, outputs = jax.jit(unroll)(copying_cell, None, x)
    np.testing.assert_allclose(outputs.features[length + 1 :], vectors, atol=1e-3)


def test_a_step_by_hand():
    """With given keys k of the previous step, every write key and read key is g R k + (1 - g) k~."""
    memory = local_memory(4, 3, hidden_sizes=())
    rng = np.random.default_rng(0)
    last, x = rng.normal(size=(1, 4, 4)).astype(np.float32), rng.normal(size=(1, 2)).astype(np.float32)

    @jax.jit
    def run():
        plain, cell = (MNMCell(2, 5, memory, heads=2, follow_keys=f, rngs=nnx.Rngs(0)) for f in (False, True))
        cell.angles.set_value(jnp.asarray([1.0, 1.0]))
        carry = cell.initialize_carry((1, 2))
        carry, outputs = cell(carry._replace(keys=jnp.asarray(last)), x)
        return cell, carry, outputs.trace, plain(plain.initialize_carry((1, 2)), x)[1].trace

    cell, carry, trace, plain = run()
    u = np.tanh(carry.controller[1][0] @ cell.interaction.kernel[...] + cell.interaction.bias[...])[:4]
    gates = 1 / (1 + np.exp(-(u @ cell.follow.kernel[...] + cell.follow.bias[...])))
    a, b, c, d = np.moveaxis(last[0], -1, 0)
    rotated = np.stack([-c, -b, a, -d], -1)  # by pi / 4 (1 + 1) and pi / 4 (3 + 1)
    computed = np.concatenate([plain.write_keys[0], plain.read_keys[0]])
    expected = gates[:, None] * rotated + (1 - gates[:, None]) * computed
    np.testing.assert_allclose(carry.keys[0], expected, atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([trace.write_keys, trace.read_keys], 1), carry.keys)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [pytest.param(jnp.float32, 1e-3, marks=pytest.mark.slow), (jnp.bfloat16, 0.3)]
)
def test_two_thousand_rotations_change_no_length(dtype, tolerance):
    """With the first angles R^K = -1; rounded cosines and sines would change the length by a factor per step."""
    memory = local_memory(8, 2, hidden_sizes=())
    keys = np.random.default_rng(0).choice([-1, 1], (1, 2, 8))

    @jax.jit
    def run():
        cell = MNMCell(2, 3, memory, follow_keys=True, dtype=dtype, rngs=nnx.Rngs(0))
        cell.follow.bias.set_value(jnp.full(2, 200.0))  # g = 1
        carry = cell.initialize_carry((1, 2))._replace(keys=jnp.asarray(keys, dtype))
        return unroll(cell, carry, jnp.ones((2008, 1, 2), dtype), form="plain")[0].keys

    np.testing.assert_allclose(np.asarray(run(), np.float32), -keys, atol=tolerance)


def test_an_odd_size_of_keys_and_a_carry_without_keys_are_refused_by_name(copying_cell):
    carry = copying_cell.initialize_carry((1, BITS + 1))
    with pytest.raises(TypeError, match=r"^carry.keys must be an array \[B, N, K\], got None"):
        copying_cell(carry._replace(keys=None), jnp.ones((1, BITS + 1)))
    with pytest.raises(ValueError, match="^the memory's key_size must be even with follow_keys=True, got 3"):
        MNMCell(2, 3, local_memory(3, 2, hidden_sizes=()), follow_keys=True, rngs=nnx.Rngs(0))
