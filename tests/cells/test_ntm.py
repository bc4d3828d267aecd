"""Tests the NTM against loops over one example, and the moves of its heads."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import NTMCell, unroll
from mnm_jax.analysis import memory_maps
from mnm_jax.cells._ntm import Focus, point

B, D, HIDDEN, N, W, READ, WRITE, FURTHEST = 2, 3, 4, 5, 3, 1, 2, 2


def make(dtype=jnp.float64, **options):
    sizes = {"slots": N, "memory_features": W, "read_heads": READ, "write_heads": WRITE, "max_shift": FURTHEST}
    return NTMCell(D, HIDDEN, **sizes | options, param_dtype=dtype, rngs=nnx.Rngs(0))


def inputs(steps, dtype=np.float64):
    return np.random.default_rng(0).normal(size=(steps, B, D)).astype(dtype)


run = jax.jit(unroll)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log(1 + np.exp(x))


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def simple_lstm(cell, c, h, x):
    i, f, g, o = np.split(
        x @ np.asarray(cell.dense_i.kernel) + h @ np.asarray(cell.dense_h.kernel) + cell.dense_h.bias, 4
    )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def simple_point(memory, last, key, strength, gate, shifts, sharpness):
    """Applies equations 5 to 9 in order; norms have our eps, since slots initially hold 1e-6."""
    norm = lambda x: np.sqrt(sum(x * x) + 1e-6)  # noqa: E731
    content = softmax(np.array([strength * sum(key * row) / norm(key) / norm(row) for row in memory]))
    gated = [gate * content[n] + (1 - gate) * last[n] for n in range(N)]
    moved = np.zeros(N)
    for n in range(N):
        for index, j in enumerate(range(-FURTHEST, FURTHEST + 1)):
            moved[(n + j) % N] += gated[n] * shifts[index]
    return moved**sharpness / sum(moved**sharpness)


def simple_step(cell, state, x):
    """Runs one step of one example."""
    c, h, reads, memory, looked, written = state
    c, h = simple_lstm(cell.controller, c, h, np.concatenate([x, *reads]))
    raw = list(h @ np.asarray(cell.interface.kernel) + cell.interface.bias)
    take = lambda size: np.array([raw.pop(0) for _ in range(size)])  # noqa: E731
    heads = []
    for _ in range(READ + WRITE):
        key, strength, gate = np.tanh(take(W)), softplus(take(1))[0], sigmoid(take(1))[0]
        heads.append((key, strength, gate, softmax(take(2 * FURTHEST + 1)), 1 + softplus(take(1))[0]))
    erase, add = [sigmoid(take(W)) for _ in range(WRITE)], [np.tanh(take(W)) for _ in range(WRITE)]
    assert not raw

    writes = [simple_point(memory, written[i], *heads[READ + i]) for i in range(WRITE)]
    new = memory.copy()
    for i in range(WRITE):
        for n, w in np.ndindex(N, W):
            new[n, w] *= 1 - writes[i][n] * erase[i][w]
    for i in range(WRITE):
        for n, w in np.ndindex(N, W):
            new[n, w] += writes[i][n] * add[i][w]
    looks = [simple_point(new, looked[i], *heads[i]) for i in range(READ)]
    reads = [sum(look[n] * new[n] for n in range(N)) for look in looks]
    return (c, h, reads, new, looks, writes), np.concatenate([h, *reads])


def test_a_step_is_the_papers(x64):
    """Parameters are three times as large as usual, so that gates, shifts and strengths cover their ranges."""
    cell = jax.tree.map(lambda p: 3 * p, make())
    cell.first_reads[...] = jnp.asarray(np.random.default_rng(1).normal(size=(READ, W)))
    x = inputs(6)
    carry, outputs = jax.device_get(run(cell, None, x))
    start = jax.device_get(jax.tree.leaves(cell.initialize_carry((B, D))))
    for b in range(B):
        state = [leaf[b] for leaf in start]
        for t in range(len(x)):
            state, features = simple_step(cell, state, x[t, b])
            np.testing.assert_allclose(outputs.features[t, b], features, atol=1e-9)
        for found, expected in zip(jax.tree.leaves(carry), state, strict=True):
            np.testing.assert_allclose(found[b], expected, atol=1e-9)


def test_the_beginning():
    """Initially slots hold 1e-6, each head points at its own slot, and the first reads are learned."""
    cell = make(jnp.float32)
    cell.first_reads[...] = jnp.array([[1.0, -2.0, 3.0]])
    carry = cell.initialize_carry((B, D))
    np.testing.assert_array_equal(carry.memory, np.full((B, N, W), 1e-6, np.float32))
    np.testing.assert_array_equal(carry.write_weights, np.broadcast_to(np.eye(N)[:WRITE], (B, WRITE, N)))
    np.testing.assert_array_equal(carry.read_weights, np.broadcast_to(np.eye(N)[:READ], (B, READ, N)))
    np.testing.assert_array_equal(carry.reads, [[[1, -2, 3]], [[1, -2, 3]]])
    gradient = jax.jit(jax.grad(lambda cell: jnp.sum(unroll(cell, None, inputs(1, np.float32))[1].features)))(cell)
    assert np.all(gradient.first_reads[...] != 0)


def focus(*, key=(1.0, 0.0), strength=100.0, gate=0.0, shifts=(0.0, 1.0, 0.0), sharpness=1.0):
    """Returns the focus of one head, which by default keeps its last weighting."""
    given = (key, strength, gate, shifts, sharpness)
    return Focus(*(np.asarray(x, np.float32)[None, None] for x in given))


def at(slot, slots=4):
    return np.eye(slots, dtype=np.float32)[None, None, slot]


MEMORY = np.array([[[0.0, 1.0], [-1.0, 0.0], [3.0, 0.0], [0.0, -1.0]]], np.float32)


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (focus(), [0, 1, 0, 0]),  # stays
        (focus(gate=1.0), [0, 0, 1, 0]),  # selects the slot similar to its key
        (focus(shifts=(0.0, 0.0, 1.0)), [0, 0, 1, 0]),  # moves on
        (focus(shifts=(1.0, 0.0, 0.0)), [1, 0, 0, 0]),  # moves back
        (focus(gate=1.0, shifts=(0.0, 0.0, 1.0)), [0, 0, 0, 1]),  # selects the slot after the one similar to its key
        (focus(gate=0.2), [0, 0.8, 0.2, 0]),
        (focus(gate=0.2, sharpness=2.0), [0, 16 / 17, 1 / 17, 0]),
        (focus(shifts=(0.0, 0.5, 0.5)), [0, 0.5, 0.5, 0]),
    ],
)
def test_a_head_at_slot_one_points(wish, expected):
    np.testing.assert_allclose(np.asarray(jax.jit(point)(MEMORY, at(1), wish))[0, 0], expected, atol=1e-5)


def test_heads_that_move_on_by_one_copy_a_sequence():
    """A cell by hand adds its input, moves on by one slot per step, and reads the slot written one cycle earlier."""
    cell = NTMCell(D, D, slots=N, memory_features=W, rngs=nnx.Rngs(0))
    for linear in (cell.controller.dense_i, cell.controller.dense_h, cell.interface):
        linear.kernel[...] = jnp.zeros_like(linear.kernel[...])
    # Gates of the LSTM: i open, f shut, g the input, o open. The write vector is the input's sign.
    cell.controller.dense_i.kernel[...] = cell.controller.dense_i.kernel[...].at[:D, 2 * D : 3 * D].set(9 * jnp.eye(D))
    cell.controller.dense_h.bias[...] = jnp.repeat(jnp.array([20.0, -20.0, 0.0, 20.0]), D)
    stay_and_move = [0.0] * W + [0.0, -20.0, -20.0, -20.0, 20.0, 20.0]  # key, strength, gate, shifts, sharpness
    cell.interface.bias[...] = jnp.array([*stay_and_move, *stay_and_move, *[20.0] * W, *[0.0] * W])
    cell.interface.kernel[...] = cell.interface.kernel[...].at[:, -W:].set(20 * jnp.eye(D))

    signs = np.sign(np.random.default_rng(0).normal(size=(N, 1, D)))
    carry, outputs = jax.device_get(run(cell, None, signs.astype(np.float32)))
    # The heads start at slot 0 and move before they write, so the last of N inputs is in slot 0.
    np.testing.assert_allclose(carry.memory[0], np.roll(signs[:, 0], 1, 0), atol=1e-3)
    np.testing.assert_allclose(outputs.features[:, 0, D:], signs[:, 0], atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_weightings_stay_weightings(scale):
    cell = jax.tree.map(lambda p: scale * p, make(jnp.float32))

    def step(carry, x):
        carry, _ = cell(carry, x)
        return carry, (carry.read_weights, carry.write_weights)

    _, weightings = jax.jit(partial(jax.lax.scan, step))(cell.initialize_carry((B, D)), inputs(40, np.float32))
    for w in weightings:
        assert np.all(w >= 0)
        np.testing.assert_allclose(w.sum(-1), 1, atol=1e-5)


def test_a_cell_that_asks_for_nothing_has_finite_derivatives():
    """With all parameters zero, keys are zero and nothing is ever added."""
    cell = jax.tree.map(jnp.zeros_like, make(jnp.float32))

    @jax.jit
    def differentiate(cell, x):
        return jax.value_and_grad(lambda cell, x: jnp.sum(unroll(cell, None, x)[1].features), (0, 1))(cell, x)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(differentiate(cell, inputs(4, np.float32))))


def test_the_trace_pairs_heads_and_repeats_the_fewer():
    _, outputs = jax.device_get(run(make(jnp.float32), None, inputs(3, np.float32)))
    trace = jax.tree.map(lambda leaf: leaf[:, 0], outputs.trace)
    for head in range(WRITE):
        np.testing.assert_array_equal(trace.read_values[:, head], outputs.features[:, 0, HIDDEN:])
    assert np.any(trace.write_keys[:, 0] != trace.write_keys[:, 1])
    assert np.isfinite(memory_maps(trace).keys[np.tril_indices(3)]).all()
