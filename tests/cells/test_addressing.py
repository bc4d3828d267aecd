"""Tests each step of the addressing against loops over one example, numbers worked by hand, and extreme inputs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnm_jax.cells import _addressing as addressing
from mnm_jax.testing._contract import assert_derivatives

B, H, N, W = 2, 3, 5, 4
close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)


def run(function, *arguments):
    """Returns the results of a compiled function as NumPy arrays."""
    return jax.device_get(jax.jit(function)(*arguments))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def uniform(seed, *shape):
    return np.random.default_rng(seed).uniform(size=shape)


def weighting(seed, *shape, total=1.0):
    w = uniform(seed, *shape) ** 2
    return total * w / w.sum(-1, keepdims=True)


def simple_content(memory, key, strength):
    scores = []
    for row in memory:
        dot = sum(k * m for k, m in zip(key, row, strict=True))
        norms = sum(k * k for k in key) ** 0.5 * sum(m * m for m in row) ** 0.5
        scores.append(np.exp(strength * dot / norms))
    return [score / sum(scores) for score in scores]


def test_content_weighting(x64):
    memory, keys, strengths = 3 + normal(0, B, N, W), normal(1, B, H, W) - 3, 4 * uniform(2, B, H)
    found = run(addressing.content_weighting, memory, keys, strengths)
    for b in range(B):
        for h in range(H):
            # The loops have no eps in their norms, which are about 6 here.
            np.testing.assert_allclose(found[b, h], simple_content(memory[b], keys[b, h], strengths[b, h]), rtol=1e-6)


def test_content_weighting_by_hand():
    """Cosines 1, 0 and -1; strength log 2."""
    memory = np.array([[[5.0, 0.0], [0.0, 0.3], [-2.0, 0.0]]])
    found = run(addressing.content_weighting, memory, np.array([[[2.0, 0.0]]]), np.array([[np.log(2.0)]]))
    np.testing.assert_allclose(found[0, 0], [4 / 7, 2 / 7, 1 / 7], rtol=1e-5)


def test_interpolate(x64):
    content, last, gate = weighting(0, B, H, N), weighting(1, B, H, N), uniform(2, B, H)
    found = run(addressing.interpolate, content, last, gate)
    for b, h, n in np.ndindex(B, H, N):
        close(found[b, h, n], gate[b, h] * content[b, h, n] + (1 - gate[b, h]) * last[b, h, n])


@pytest.mark.parametrize("furthest", [1, 2, 3])
def test_shift(furthest, x64):
    """Three slots to either side are more than there are: the shifts wrap around."""
    w, shifts = weighting(0, B, H, N), weighting(1, B, H, 2 * furthest + 1)
    expected = np.zeros((B, H, N))
    for b, h, n in np.ndindex(B, H, N):
        for j in range(-furthest, furthest + 1):
            expected[b, h, (n + j) % N] += w[b, h, n] * shifts[b, h, j + furthest]
    close(run(addressing.shift, w, shifts), expected)


def test_shift_by_hand():
    last_slot = np.array([[[0.0, 0.0, 0.0, 1.0]]])
    for shifts, expected in [([1, 0, 0], [0, 0, 1, 0]), ([0, 1, 0], [0, 0, 0, 1]), ([0, 0, 1], [1, 0, 0, 0])]:
        found = run(addressing.shift, last_slot, np.asarray([[shifts]], np.float32))
        assert found[0, 0].tolist() == expected


def test_sharpen(x64):
    w, gamma = weighting(0, B, H, N), 1 + 5 * uniform(1, B, H)
    found = run(addressing.sharpen, w, gamma)
    for b, h in np.ndindex(B, H):
        powers = [x ** gamma[b, h] for x in w[b, h]]
        np.testing.assert_allclose(found[b, h], [power / sum(powers) for power in powers], atol=1e-10)


def test_sharpen_by_hand():
    w = np.array([[[0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0.0]]])
    found = run(addressing.sharpen, w, np.array([[2.0, 9.0, 1.0]]))
    np.testing.assert_allclose(found[0], [[2 / 3, 1 / 6, 1 / 6, 0], [0.25] * 4, [0.5, 0.25, 0.25, 0]], atol=1e-6)


def test_sharpening_far_beyond_what_powers_can_represent():
    """0.3 to the power of 1,000 is zero in single precision, and zero divided by zero is NaN."""
    found = run(addressing.sharpen, np.array([[[0.3, 0.25, 0.25, 0.2]]]), np.full((1, 1), 1000.0))
    np.testing.assert_allclose(found[0, 0], [1, 0, 0, 0], atol=1e-6)


def test_write_and_read(x64):
    memory, weights = normal(0, B, N, W), weighting(1, B, H, N)
    erase, add = uniform(2, B, H, W), normal(3, B, H, W)
    written, read = run(addressing.write, memory, weights, erase, add), run(addressing.read, memory, weights)
    for b in range(B):
        for n, w in np.ndindex(N, W):
            expected = memory[b, n, w]
            for h in range(H):
                expected *= 1 - weights[b, h, n] * erase[b, h, w]
            for h in range(H):
                expected += weights[b, h, n] * add[b, h, w]
            close(written[b, n, w], expected)
        for h, w in np.ndindex(H, W):
            close(read[b, h, w], sum(weights[b, h, n] * memory[b, n, w] for n in range(N)))


def test_a_full_erase_leaves_what_is_added_there_and_the_rest_as_it_was():
    memory, here = np.asarray(normal(0, 1, 3, 2), np.float32), np.array([[[0.0, 1.0, 0.0]]])
    written = run(addressing.write, memory, here, np.ones((1, 1, 2)), np.array([[[7.0, -7.0]]]))
    np.testing.assert_array_equal(written[0], [memory[0, 0], [7, -7], memory[0, 2]])
    np.testing.assert_array_equal(run(addressing.read, written, here)[0], [[7, -7]])


def test_retention_and_usage(x64):
    free, reads = uniform(0, B, H), weighting(1, B, H, N)
    last, writes = uniform(2, B, N), weighting(3, B, N, total=0.8)
    retained = run(addressing.retention, free, reads)
    used = run(addressing.usage, last, writes, retained)
    for b, n in np.ndindex(B, N):
        expected = 1.0
        for h in range(H):
            expected *= 1 - free[b, h] * reads[b, h, n]
        close(retained[b, n], expected)
        # A slot is free if it was free and was not written to, or if it was freed.
        close(1 - used[b, n] / expected, (1 - last[b, n]) * (1 - writes[b, n]))


def simple_allocation(used):
    order = sorted(range(len(used)), key=lambda n: used[n])
    allocated, before = np.zeros(len(used)), 1.0
    for n in order:
        allocated[n] = (1 - used[n]) * before
        before *= used[n]
    return allocated


@pytest.mark.parametrize("seed", range(5))
def test_allocation(seed, x64):
    used = uniform(seed, B, N)
    used[:, seed] = used[:, 0]  # two equal slots, except with the first seed
    found = run(addressing.allocation, used)
    for b in range(B):
        close(found[b], simple_allocation(used[b]))
        close(1 - found[b].sum(), np.prod(used[b]))  # the part not allocated is the product of all usages
    if not seed:
        assert_derivatives(lambda used: jnp.sum(jnp.sin(addressing.allocation(used))), used, order=1)


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        ([1.0, 1.0, 0.0, 1.0], [0, 0, 1, 0]),
        ([0.0, 0.0, 0.0], [1, 0, 0]),
        ([1.0, 1.0, 1.0], [0, 0, 0]),
        ([0.5, 0.2], [0.1, 0.8]),
        ([0.5, 0.5, 0.25], [0.125, 0.0625, 0.75]),
    ],
)
def test_allocation_by_hand(used, expected):
    np.testing.assert_allclose(run(addressing.allocation, np.array([used]))[0], expected, atol=1e-7)


def test_allocation_picks_the_slot_that_was_read_and_freed():
    reads = np.array([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    retained = run(addressing.retention, np.array([[1.0, 0.0]]), reads)  # the second head frees nothing
    used = run(addressing.usage, np.ones((1, 3)), np.zeros((1, 3)), retained)
    np.testing.assert_array_equal(run(addressing.allocation, used)[0], [0, 1, 0])


def test_write_weighting_and_precedence(x64):
    content, allocated, last = weighting(0, B, N), weighting(1, B, N, total=0.7), weighting(2, B, N, total=0.9)
    allocate, write = uniform(3, B), uniform(4, B)
    weights = run(addressing.write_weighting, content, allocated, allocate, write)
    recent = run(addressing.precedence, last, weights)
    for b in range(B):
        for n in range(N):
            expected = write[b] * (allocate[b] * allocated[b, n] + (1 - allocate[b]) * content[b, n])
            close(weights[b, n], expected)
            close(recent[b, n], (1 - sum(weights[b])) * last[b, n] + expected)


def test_link_and_follow(x64):
    links = np.tril(uniform(0, B, N, N), -1) / N + np.triu(uniform(1, B, N, N), 1) / N
    writes, recent, reads = weighting(2, B, N, total=0.6), weighting(3, B, N), weighting(4, B, H, N)
    found = run(addressing.link, links, writes, recent)
    forward, backward = run(addressing.follow, found, reads)
    for b in range(B):
        expected = np.zeros((N, N))
        for i, j in np.ndindex(N, N):
            if i != j:
                expected[i, j] = (1 - writes[b, i] - writes[b, j]) * links[b, i, j] + writes[b, i] * recent[b, j]
        close(found[b], expected)
        for h, n in np.ndindex(H, N):
            close(forward[b, h, n], sum(expected[n, j] * reads[b, h, j] for j in range(N)))
            close(backward[b, h, n], sum(expected[i, n] * reads[b, h, i] for i in range(N)))


def test_links_lead_from_write_to_write_by_hand():
    """Slots 2, 0 and 1 are written in this order."""
    slot = np.eye(3)
    links, recent = np.zeros((1, 3, 3)), np.zeros((1, 3))
    for n in (2, 0, 1):
        links = run(addressing.link, links, slot[None, n], recent)
        recent = run(addressing.precedence, recent, slot[None, n])
        np.testing.assert_array_equal(recent[0], slot[n])
    np.testing.assert_array_equal(links[0], [[0, 0, 1], [1, 0, 0], [0, 0, 0]])
    forward, backward = run(addressing.follow, links, slot[None])
    np.testing.assert_array_equal(forward[0], [slot[1], np.zeros(3), slot[0]])
    np.testing.assert_array_equal(backward[0], [slot[2], slot[0], np.zeros(3)])


def test_read_weighting(x64):
    backward, content, forward = weighting(0, B, H, N), weighting(1, B, H, N), weighting(2, B, H, N)
    modes = weighting(3, B, H, 3)
    found = run(addressing.read_weighting, backward, content, forward, modes)
    for b, h, n in np.ndindex(B, H, N):
        parts = (backward[b, h, n], content[b, h, n], forward[b, h, n])
        close(found[b, h, n], sum(modes[b, h, m] * parts[m] for m in range(3)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_weightings_sum_to_one(scale, dtype):
    """A head's weighting sums to one for zero inputs and for very large ones."""
    draw = lambda seed, *shape: (scale * normal(seed, *shape)).astype(dtype)  # noqa: E731

    @jax.jit
    def weightings(memory, keys, strengths, gates, shifts, sharpness):
        content = addressing.content_weighting(memory, keys, jax.nn.softplus(strengths))
        gated = addressing.interpolate(content, jnp.full((B, H, N), 1 / N, dtype), jax.nn.sigmoid(gates))
        moved = addressing.shift(gated, jax.nn.softmax(shifts, axis=-1))
        return content, gated, moved, addressing.sharpen(moved, 1 + jax.nn.softplus(sharpness))

    scalars = (draw(seed, B, H) for seed in (2, 3))
    for w in weightings(draw(0, B, N, W), draw(1, B, H, W), *scalars, draw(4, B, H, 3), draw(5, B, H)):
        assert w.dtype == dtype and np.all(w >= 0)
        np.testing.assert_allclose(np.sum(w, -1, dtype=np.float32), 1, atol=1e-5 if dtype == jnp.float32 else 0.03)


ZERO_ROWS = np.concatenate([np.zeros((B, 2, W)), normal(0, B, N - 2, W)], 1)
DEGENERATE = {
    "zero keys": (addressing.content_weighting, normal(0, B, N, W), np.zeros((B, H, W)), np.ones((B, H))),
    "zero slots": (addressing.content_weighting, np.zeros((B, N, W)), normal(0, B, H, W), np.ones((B, H))),
    "all zero": (addressing.content_weighting, np.zeros((B, N, W)), np.zeros((B, H, W)), np.zeros((B, H))),
    "some slots zero": (addressing.content_weighting, ZERO_ROWS, normal(1, B, H, W), np.full((B, H), 9.0)),
    "one slot": (addressing.sharpen, np.broadcast_to(np.eye(N)[0], (B, H, N)), np.full((B, H), 1.0)),
    "one slot, sharp": (addressing.sharpen, np.broadcast_to(np.eye(N)[0], (B, H, N)), np.full((B, H), 500.0)),
    "nothing used": (addressing.allocation, np.zeros((B, N))),
    "all used": (addressing.allocation, np.ones((B, N))),
    "used alike": (addressing.allocation, np.full((B, N), 0.5)),
    "all freed": (addressing.retention, np.ones((B, H)), np.broadcast_to(np.eye(N)[0], (B, H, N))),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_memories_have_finite_values_and_derivatives(case):
    """Derivatives of first and second order, and of first in float16; each case has a 0 / 0, a log 0 or a tie."""
    function, *arguments = DEGENERATE[case]
    arguments = [np.asarray(x, np.float32) for x in arguments]
    every = tuple(range(len(arguments)))
    mixed = normal(9, *jax.eval_shape(function, *arguments).shape)

    def value(*arguments):
        result = function(*arguments)
        return jnp.sum(mixed.astype(result.dtype) * result)

    def slope(*arguments):
        gradient = jax.grad(value, every)(*arguments)
        return sum(jnp.sum(jnp.sin(g)) for g in gradient), gradient

    def values(*arguments):
        return function(*arguments), jax.grad(slope, every, has_aux=True)(*arguments)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(values, *arguments)))
    half = [x.astype(np.float16) for x in arguments]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(jax.grad(value, every), *half)))
