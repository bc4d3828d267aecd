"""Runs the memory, a cell and `unroll` of an installed `mnm_jax` with its required packages alone."""

import importlib.metadata
import importlib.util
import pathlib
import sys

import mnm_jax.memory

assert not {"flax", "optax"} & set(sys.modules), "mnm_jax.memory loads more than jax"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402

from mnm_jax import MNMCell, NeuralMemoryLayer, gradient_memory, unroll  # noqa: E402


def check_contents() -> None:
    """Checks that the wheel installs `mnm_jax` with its type marker, and no other package."""
    installed = pathlib.Path(mnm_jax.__file__).parent
    assert installed.is_relative_to(sys.prefix), installed
    assert (installed / "py.typed").is_file()
    files = importlib.metadata.files("mnm_jax") or []
    assert {file.parts[0] for file in files if file.suffix == ".py"} == {"mnm_jax"}, files
    for name in ("tasks", "launch"):
        assert importlib.util.find_spec(name) is None, f"{name} is installed"


def check_memory() -> None:
    """Checks that a write brings the read closer to the written value."""
    memory = mnm_jax.memory.gradient_memory(4, 3, hidden_sizes=())
    params = memory.init(jax.random.key(0))
    before = memory.start(params, 2)
    keys, values = jax.random.normal(jax.random.key(1), (2, 1, 4)), jax.random.normal(jax.random.key(2), (2, 1, 3))
    after, _ = memory.write(params, before, keys, values, jnp.ones(2))
    errors = [float(jnp.sum((memory.read(params, state, keys) - values) ** 2)) for state in (before, after)]
    assert errors[1] < 0.5 * errors[0], errors


def check_cell() -> None:
    """Checks that a gradient step through `unroll`, compiled, lowers a loss."""
    graphdef, params = nnx.split(MNMCell(3, 8, gradient_memory(4, 4, hidden_sizes=(4,)), rngs=nnx.Rngs(0)))
    inputs = jax.random.normal(jax.random.key(3), (5, 2, 3))

    @jax.jit
    @jax.value_and_grad
    def loss(params: nnx.State) -> jax.Array:
        _, outputs = unroll(nnx.merge(graphdef, params), None, inputs)
        return jnp.mean((outputs.features - 0.1) ** 2)

    before, gradient = loss(params)
    after, _ = loss(jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, params, gradient))
    assert after < before, (before, after)


def check_layer() -> None:
    """Checks that a layer's chunks give what its steps give."""
    layer = NeuralMemoryLayer(3, gradient_memory(4, 4, hidden_sizes=()), chunk=2, rngs=nnx.Rngs(0))
    inputs, carry = jax.random.normal(jax.random.key(4), (4, 2, 3)), None
    _, whole = layer(None, inputs)
    for t in range(4):
        carry, outputs = layer.step(carry, inputs[t])
        assert jnp.allclose(outputs, whole[t], atol=1e-5)


def check_extra() -> None:
    """Checks that a part that needs an extra says which one."""
    from mnm_jax.training import MetricWriter

    try:
        MetricWriter("run")
    except ImportError as error:
        assert "pip install 'mnm_jax[train]'" in str(error), error
    else:
        raise AssertionError("tensorboardX is installed, though mnm_jax does not require it")


check_contents()
check_memory()
check_cell()
check_layer()
check_extra()
print(f"mnm_jax {mnm_jax.__version__} works with its required packages alone.")
