"""Tests derivatives of derivatives through `unroll` in every form, and the error of forward mode.

The reference is the form "plain", which consists of ordinary JAX operations: its gradient g and, by the forward-mode
derivative of g, the products H v of its matrix H of second derivatives.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import ChainCell, MNMCell, gradient_memory, local_memory, unroll
from mnm_jax.recurrence._textbook import unroll_textbook

T, B, D = 4, 2, 2
MASK = np.array([[1, 1], [1, 0], [0, 1], [1, 1]], bool)
FORK = np.array([[0, 0], [1, 0], [0, 0], [0, 1]], bool)
RESET = np.array([[0, 0], [0, 1], [1, 0], [0, 0]], bool)
SLOW = pytest.mark.slow  # a further form of a case that a faster test covers
FLAGS = {"mask": MASK, "fork": FORK}
DTYPE = {"param_dtype": jnp.float64}


def mnm(memory):
    return MNMCell(D, 2, memory, **DTYPE, rngs=nnx.Rngs(0))


MODELS = {
    "mnm-p": lambda: mnm(local_memory(2, 2, hidden_sizes=(), **DTYPE)),
    "mnm-g": lambda: mnm(gradient_memory(2, 2, hidden_sizes=(2,), **DTYPE)),
    "chain-p": lambda: ChainCell(
        3, 2, local_memory(3, 3, hidden_sizes=(), **DTYPE), entities=1, heads=1, hops=1, **DTYPE, rngs=nnx.Rngs(0)
    ),
}


@functools.cache
def arguments(name):
    """Returns a cell, a carry that is not the first one, and inputs: the arguments of a loss."""
    cell, rng = MODELS[name](), np.random.default_rng(0)
    carry = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape), cell.initialize_carry((B, D)))
    return cell, carry, rng.normal(size=(T, B, cell.in_features))


def loss(run, arguments, **flags):
    leaves = jax.tree.leaves(run(*arguments, **flags))
    return sum(jnp.sum(jnp.sin((i + 1) * leaf)) for i, leaf in enumerate(leaves))


def reference(at, along, checkpoint_every=None, **flags):
    """Returns g and H v of the form "plain". Flags are given as arrays, so that cases share a program."""
    del checkpoint_every
    return _reference(at, along, {"reset": np.zeros((T, B), bool), **flags} if flags else {})


@jax.jit
def _reference(at, along, flags):
    return jax.jvp(jax.grad(lambda at: loss(functools.partial(unroll, form="plain"), at, **flags)), (at,), (along,))


def assert_close(found, expected):
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    assert np.isfinite(largest) and largest > 0.1
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8 * largest)


def direction(tree):
    return jax.tree.map(lambda leaf: np.cos(np.arange(leaf.size)).reshape(leaf.shape), tree)


def forward_over_reverse(gradient, at, along):
    return jax.jvp(gradient, (at,), (along,))


def reverse_over_reverse(gradient, at, along):
    value, vjp = jax.vjp(gradient, at)
    return value, *vjp(along)  # H is symmetric


def case(second, name, form, flags, *marks):
    ids = [second.__name__, name, form, *flags]
    return pytest.param(second, name, form, flags, id="-".join(ids), marks=marks)


EVERY = {"checkpoint_every": 2}
ALL = FLAGS | {"reset": RESET}


# MNM-g without a mask: at a zero key and value its third derivatives are NaN in every form.
@pytest.mark.parametrize(
    ("second", "name", "form", "flags"),
    [
        case(reverse_over_reverse, "mnm-p", "textbook", FLAGS, SLOW),
        case(forward_over_reverse, "mnm-p", "textbook", FLAGS, SLOW),
        case(reverse_over_reverse, "mnm-p", "reversible", FLAGS | EVERY, SLOW),
        case(forward_over_reverse, "mnm-p", "reversible", FLAGS, SLOW),
        case(forward_over_reverse, "mnm-p", "reversible", FLAGS | EVERY, SLOW),
        case(reverse_over_reverse, "mnm-p", "factored", ALL),
        case(reverse_over_reverse, "mnm-p", "factored", ALL | EVERY, SLOW),
        case(forward_over_reverse, "mnm-p", "factored", ALL | EVERY, SLOW),
        case(reverse_over_reverse, "mnm-g", "factored", {}, SLOW),
        case(forward_over_reverse, "mnm-g", "factored", {}, SLOW),
        case(forward_over_reverse, "chain-p", "reversible", FLAGS, SLOW),
        case(reverse_over_reverse, "chain-p", "reversible", FLAGS, SLOW),
        case(reverse_over_reverse, "chain-p", "factored", ALL, SLOW),
    ],
)
def test_second_derivatives(second, name, form, flags, x64):
    """The loss is a sum of sines of carry and outputs; its arguments are parameters, first carry and inputs."""
    at, along = arguments(name), direction(arguments(name))
    run = unroll_textbook if form == "textbook" else functools.partial(unroll, form=form)
    found = jax.jit(lambda at, along: second(jax.grad(lambda at: loss(run, at, **flags)), at, along))(at, along)
    assert_close(found, reference(at, along, **flags))


@pytest.mark.parametrize("name", ["mnm-p", pytest.param("mnm-g", marks=SLOW)])
def test_the_gradient_of_an_inner_update(name, x64):
    """MAML with default arguments: the gradient of L(theta - a grad L(theta)) is g' - a H g', g' the outer gradient."""
    at, rate = arguments(name), 0.1

    @jax.jit
    def step(at, gradient):
        return jax.tree.map(lambda x, g: x - rate * g, at, gradient)

    value = functools.partial(loss, unroll)
    found = jax.jit(jax.grad(lambda at: value(step(at, jax.grad(value)(at)))))(at)
    outer, _ = reference(step(at, reference(at, at)[0]), at)
    assert_close(found, step(outer, reference(at, outer)[1]))


@SLOW
def test_jacrev_of_jacrev(x64):
    """For L(a + sum_k c_k d_k) as a function of c it is d_k H d_l; the directions d_k are in all arguments at once."""
    at = arguments("mnm-p")
    along = [direction(at), jax.tree.map(lambda leaf: np.sin(2 * leaf), direction(at))]

    def value(c):
        moved = jax.tree.map(lambda leaf, a, b: leaf + c[0] * a + c[1] * b, at, *along)
        return loss(functools.partial(unroll, form="reversible"), moved, **FLAGS, **EVERY)

    products = [jax.tree.leaves(reference(at, d, **FLAGS)[1]) for d in along]
    expected = [[sum(map(np.vdot, jax.tree.leaves(d), product)) for product in products] for d in along]
    assert_close(jax.jit(jax.jacrev(jax.jacrev(value)))(np.zeros(2)), np.array(expected))


@pytest.mark.parametrize("form", ["auto", "reversible", "factored"])
def test_forward_mode_names_the_form_that_supports_it(form, x64):
    """By an error while the program is lowered, or else while it runs."""
    cell, carry, x = arguments("mnm-p")
    value = lambda x: loss(functools.partial(unroll, form=form), (cell, carry, x))  # noqa: E731
    error = pytest.raises(TypeError, match=r"no forward-mode derivatives .*use unroll\(\.\.\., form='plain'\)")
    with error:
        jax.jit(lambda x: jax.jvp(value, (x,), (x,))).lower(x)
    with error:
        jax.jit(lambda x: jax.linearize(value, x)[1](x)).lower(x)
    if form == "reversible":
        with error:
            jax.jvp(value, (x,), (x,))
