"""Tests the DNC against loops over one example, against another implementation, and on the functions of its memory."""

import json
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import DNCCell, unroll
from mnm_jax.analysis import memory_maps
from mnm_jax.cells import _dnc
from mnm_jax.cells._dnc import DNCInterface, DNCMemory

B, D, HIDDEN, N, W, R = 2, 3, 4, 4, 3, 2
GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden_dnc.json").read_text())


access, run = jax.jit(_dnc.access), jax.jit(unroll)


def make(dtype=jnp.float64, **options):
    sizes = {"slots": N, "memory_features": W, "read_heads": R} | options
    return DNCCell(D, HIDDEN, **sizes, param_dtype=dtype, rngs=nnx.Rngs(0))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def one_plus(x):
    return 1 + np.log(1 + np.exp(x))


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def lookup(matrix, key, strength):
    """Returns content weightings; the only place with our eps, since norms are small for slots hardly written to."""
    norm = lambda x: np.sqrt(sum(x * x) + 1e-6)  # noqa: E731
    return softmax(np.array([strength * sum(key * row) / norm(key) / norm(row) for row in matrix]))


def simple_lstm(cell, c, h, x):
    i, f, g, o = np.split(
        x @ np.asarray(cell.dense_i.kernel) + h @ np.asarray(cell.dense_h.kernel) + cell.dense_h.bias, 4
    )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def simple_step(cell, state, x):
    """Runs one step of one example, following the paper's Methods sentence by sentence."""
    c, h, reads, matrix, usage, link, precedence, written, looked = state
    c, h = simple_lstm(cell.controller, c, h, np.concatenate([x, *reads]))
    xi = list(h @ np.asarray(cell.interface.kernel) + cell.interface.bias)
    take = lambda size: np.array([xi.pop(0) for _ in range(size)])  # noqa: E731
    read_keys, read_strengths = [take(W) for _ in range(R)], one_plus(take(R))
    write_key, write_strength = take(W), one_plus(take(1))[0]
    erase, vector, free = sigmoid(take(W)), take(W), sigmoid(take(R))
    allocation_gate, write_gate = sigmoid(take(1))[0], sigmoid(take(1))[0]
    modes = [softmax(take(3)) for _ in range(R)]
    assert not xi

    used = np.zeros(N)
    for n in range(N):
        used[n] = usage[n] + written[n] - usage[n] * written[n]
        for i in range(R):
            used[n] *= 1 - free[i] * looked[i][n]
    allocated, before = np.zeros(N), 1.0
    for n in sorted(range(N), key=lambda n: used[n]):
        allocated[n] = (1 - used[n]) * before
        before *= used[n]
    content = lookup(matrix, write_key, write_strength)
    writes = write_gate * (allocation_gate * allocated + (1 - allocation_gate) * content)
    new_matrix, new_link = np.zeros((N, W)), np.zeros((N, N))
    for n, w in np.ndindex(N, W):
        new_matrix[n, w] = matrix[n, w] * (1 - writes[n] * erase[w]) + writes[n] * vector[w]
    for i, j in np.ndindex(N, N):
        if i != j:
            new_link[i, j] = (1 - writes[i] - writes[j]) * link[i, j] + writes[i] * precedence[j]
    new_precedence = (1 - sum(writes)) * precedence + writes
    looks = []
    for i in range(R):
        backward, forward = np.zeros(N), np.zeros(N)
        for n, m in np.ndindex(N, N):
            forward[n] += new_link[n, m] * looked[i][m]
            backward[n] += new_link[m, n] * looked[i][m]
        content = lookup(new_matrix, read_keys[i], read_strengths[i])
        looks.append(modes[i][0] * backward + modes[i][1] * content + modes[i][2] * forward)
    reads = [sum(look[n] * new_matrix[n] for n in range(N)) for look in looks]
    return (c, h, reads, new_matrix, used, new_link, new_precedence, writes, looks), np.concatenate([h, *reads])


def test_a_step_is_the_papers(x64):
    """Parameters are three times as large as usual, so that gates, modes and strengths cover their ranges."""
    cell = jax.tree.map(lambda p: 3 * p, make())
    x = np.random.default_rng(0).normal(size=(6, B, D))
    carry, outputs = jax.device_get(run(cell, None, x))
    for b in range(B):
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:]), jax.tree.leaves(carry))
        for t in range(len(x)):
            state, features = simple_step(cell, state, x[t, b])
            np.testing.assert_allclose(outputs.features[t, b], features, atol=1e-10)
        for found, expected in zip(jax.tree.leaves(carry), state, strict=True):
            np.testing.assert_allclose(found[b], expected, atol=1e-10)


def test_agrees_with_another_implementation(x64):
    """Compares four steps with the memory of the PyPI package dnc 1.1.0, from a random memory and usage.

    The package differs from the paper, and the file compensates for it: it holds the results of the package's tanh on
    keys and write vectors, of its softplus without 1 + for strengths, and of its modes (backward, forward, content), in
    the paper's order. The package's offset of 1e-6 on usage, and its 1e-6 outside the roots of the cosine, were set to
    0. The remaining difference is our eps inside the roots.
    """
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
    start = {name: np.asarray(x) for name, x in GOLDEN["start"].items()}
    batch, slots, _ = start["matrix"].shape
    heads = len(GOLDEN["steps"][0]["reads"][0])
    zeros = lambda *shape: np.zeros((batch, *shape))  # noqa: E731
    rest = {"link": zeros(slots, slots), "precedence": zeros(slots)}
    memory = DNCMemory(**start, **rest, write_weights=zeros(slots), read_weights=zeros(heads, slots))
    for step in GOLDEN["steps"]:
        memory, reads = access(memory, DNCInterface(**{name: np.asarray(x) for name, x in step["interface"].items()}))
        close(reads, step["reads"])
        for name, expected in step["memory"].items():
            close(getattr(memory, name), expected, err_msg=name)


BACKWARD, CONTENT, FORWARD = np.eye(3, dtype=np.float32)


def ask(*, key, mode, vector=None, free=0.0):
    """Returns the interface of one head that writes `vector`, if given, into a free slot, and reads by `mode`."""
    key, write = np.asarray(key, np.float32), vector is not None
    return DNCInterface(
        read_keys=key[None, None],
        read_strengths=np.full((1, 1), 100, np.float32),
        write_key=key[None],
        write_strength=np.ones(1, np.float32),
        erase=np.ones((1, key.size), np.float32),
        write_vector=np.asarray(vector if write else 0 * key, np.float32)[None],
        free_gates=np.full((1, 1), free, np.float32),
        allocation_gate=np.ones(1, np.float32),
        write_gate=np.full(1, write, np.float32),
        read_modes=mode[None, None],
    )


def empty(slots, features):
    zeros = lambda *shape: np.zeros((1, *shape), np.float32)  # noqa: E731
    links = zeros(slots, slots)
    return DNCMemory(zeros(slots, features), zeros(slots), links, zeros(slots), zeros(slots), zeros(1, slots))


def test_what_was_written_is_read_in_order_from_any_place_forwards_and_backwards():
    items = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    memory = empty(5, 3)
    for item in items:
        memory, _ = access(memory, ask(key=item, mode=CONTENT, vector=item))
    np.testing.assert_allclose(np.asarray(memory.matrix)[0, :4], items, atol=1e-6)
    path = [(CONTENT, 1), (FORWARD, 2), (FORWARD, 3), (BACKWARD, 2), (BACKWARD, 1), (BACKWARD, 0)]
    for mode, expected in path:
        memory, reads = access(memory, ask(key=items[1], mode=mode))
        np.testing.assert_allclose(np.asarray(reads)[0, 0], items[expected], atol=1e-4)


def test_a_full_memory_writes_where_it_has_read_and_freed():
    items, new = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1]]), np.float32([1, 1, 1])
    memory = empty(3, 3)
    for item in items:
        memory, _ = access(memory, ask(key=item, mode=CONTENT, vector=item))
    memory, reads = access(memory, ask(key=items[1], mode=CONTENT))
    np.testing.assert_allclose(np.asarray(reads)[0, 0], items[1], atol=1e-4)
    kept, _ = access(memory, ask(key=new, mode=CONTENT, vector=new))
    np.testing.assert_allclose(np.asarray(kept.matrix)[0], items, atol=1e-4)  # full: there is no slot to allocate
    freed, _ = access(memory, ask(key=new, mode=CONTENT, vector=new, free=1.0))
    np.testing.assert_allclose(np.asarray(freed.matrix)[0], [items[0], new, items[2]], atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_weightings_usage_and_links_stay_within_their_bounds(scale, x64):
    cell = jax.tree.map(lambda p: scale * p, make())
    x = np.random.default_rng(1).normal(size=(40, 8, D))

    def step(carry, x):
        carry, _ = cell(carry, x)
        return carry, carry.memory

    _, memory = jax.device_get(jax.jit(partial(jax.lax.scan, step))(cell.initialize_carry((8, D)), x))
    weightings = (memory.write_weights, memory.read_weights, memory.precedence)
    sums = [w.sum(-1) for w in weightings] + [memory.link.sum(-1), memory.link.sum(-2), memory.usage]
    for values in (*weightings, memory.link, memory.usage):
        assert np.min(values) >= -1e-12
    for values in sums:
        assert np.max(values) <= 1 + 1e-12
    assert np.all(np.diagonal(memory.link, axis1=-2, axis2=-1) == 0)
    assert np.max(memory.link) > 0.1 and np.max(memory.usage) > 0.5  # the test covers links and usage


def test_a_cell_that_asks_for_nothing_has_finite_derivatives():
    """With all parameters zero, keys and slots are zero and all slots are used equally at every step."""
    cell = jax.tree.map(jnp.zeros_like, make(jnp.float32))

    @jax.jit
    def differentiate(cell, x):
        return jax.value_and_grad(lambda cell, x: jnp.sum(unroll(cell, None, x)[1].features), (0, 1))(cell, x)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(differentiate(cell, jnp.ones((4, B, D)))))


def test_the_trace_has_the_one_write_for_every_read_head():
    cell, x = make(jnp.float32), np.random.default_rng(0).normal(size=(3, B, D)).astype(np.float32)
    _, outputs = jax.device_get(run(cell, None, x))
    trace = jax.tree.map(lambda leaf: np.asarray(leaf[:, 0]), outputs.trace)
    np.testing.assert_array_equal(trace.write_keys[:, 0], trace.write_keys[:, 1])
    np.testing.assert_array_equal(trace.read_values.reshape(3, -1), outputs.features[:, 0, HIDDEN:])
    assert np.all((trace.rate > 0) & (trace.rate < 1))
    assert np.isfinite(memory_maps(trace).keys[np.tril_indices(3)]).all()
