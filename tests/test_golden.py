"""Tests the cell against independent PyTorch programs, in float64; the README beside the files describes them.

The folder comes from MNM_GOLDEN_DIR (default `../shared/golden`, relative to the project; its folder `equations` works
too). It holds `mnm_p_*.npz`, and `equations/mnm_g_*.npz`, whose inner gradient is the one that the paper's equations
state: write keys and values count as constants. The files `mnm_g_*.npz` beside `mnm_p_*.npz` hold another derivative,
that of one autograd graph through all steps, which the library does not compute.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import MNMCell, gradient_memory, local_memory, unroll
from mnm_jax.memory import MemoryParams, TargetMaps

FOLDER = pathlib.Path(os.environ.get("MNM_GOLDEN_DIR", pathlib.Path(__file__).parents[2] / "shared" / "golden"))
EQUATIONS = FOLDER / "equations"
FILES = [
    *sorted(FOLDER.glob("mnm_p_*.npz")),
    *sorted((EQUATIONS if EQUATIONS.is_dir() else FOLDER).glob("mnm_g_*.npz")),
]
RELATIVE = 1e-9


def build(golden, rule: str) -> MNMCell:
    """Returns the public cell with the file's parameters (torch stores [out, in], we store [in, out])."""
    size = golden["x"].shape[-1]
    factory = {"p": local_memory, "g": gradient_memory}[rule]
    memory = factory(size, size, hidden_sizes=(size, size), step_size="paper", param_dtype=jnp.float64)
    cell = MNMCell(
        size,
        size,
        memory,
        heads=int(golden["heads"]),
        out_features=size,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
    )
    cell.controller.dense_i.kernel[...] = golden["param_lstm_weight_ih"].T
    cell.controller.dense_h.kernel[...] = golden["param_lstm_weight_hh"].T
    cell.controller.dense_h.bias[...] = golden["param_lstm_bias_ih"] + golden["param_lstm_bias_hh"]
    for layer, name in [(cell.interaction, "interaction"), (cell.rate, "rate"), (cell.readout, "readout")]:
        layer.kernel[...] = golden[f"param_{name}_weight"].T
        layer.bias[...] = golden[f"param_{name}_bias"]
    targets = None
    if rule == "p":
        targets = TargetMaps(golden["param_targets_weight"].T, golden["param_targets_bias"])
    cell.memory_params.set_value(MemoryParams(tuple(golden[f"param_memory_{n}"].T for n in (1, 2, 3)), targets))
    return cell


def loss(cell, inputs):
    carry, outputs = unroll(cell, cell.initialize_carry(inputs.shape[1:]), inputs)
    return jnp.mean(outputs.features**2) + jnp.mean(outputs.meta_loss), (carry, outputs)


def named_gradients(grad: MNMCell) -> dict[str, np.ndarray]:
    found = {
        "lstm_weight_ih": grad.controller.dense_i.kernel[...].T,
        "lstm_weight_hh": grad.controller.dense_h.kernel[...].T,
        "lstm_bias_ih": grad.controller.dense_h.bias[...],
        "lstm_bias_hh": grad.controller.dense_h.bias[...],
    }
    for layer, name in [(grad.interaction, "interaction"), (grad.rate, "rate"), (grad.readout, "readout")]:
        found[f"{name}_weight"] = layer.kernel[...].T
        found[f"{name}_bias"] = layer.bias[...]
    params = grad.memory_params.get_value()
    for n, w in enumerate(params.weights, 1):
        found[f"memory_{n}"] = w.T
    if params.targets is not None:
        found["targets_weight"] = params.targets.kernel.T
        found["targets_bias"] = params.targets.bias
    return found


@pytest.mark.skipif(not FILES, reason=f"no golden files in {FOLDER}; set MNM_GOLDEN_DIR")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_numbers(path, x64):
    with np.load(path) as archive:
        golden = {name: jnp.asarray(archive[name]) for name in archive.files}
    cell = build(golden, path.stem.split("_")[1])
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, (carry, outputs)), (grad_cell, grad_x) = run(cell, golden["x"])

    cell_state, hidden = carry.controller
    computed = {
        "outputs": outputs.features,
        "reads": jnp.mean(outputs.trace.read_values, axis=2),
        "write_loss_before": jnp.mean(outputs.write.loss_before, axis=1),
        "write_loss_after": jnp.mean(outputs.write.loss_after, axis=1),
        "final_hidden": hidden,
        "final_cell": cell_state,
        "loss": value,
        "grad_x": grad_x,
    }
    for n, w in enumerate(carry.memory.weights, 1):
        computed[f"final_memory_{n}"] = jnp.swapaxes(w, 1, 2)
    computed |= {f"grad_{name}": g for name, g in named_gradients(grad_cell).items()}

    expected = {name for name in golden if not name.startswith("param_")} - {"x", "heads"}
    assert expected == set(computed)
    for name in sorted(expected):
        scale = np.abs(golden[name]).max()
        np.testing.assert_allclose(computed[name], golden[name], rtol=RELATIVE, atol=RELATIVE * scale, err_msg=name)
