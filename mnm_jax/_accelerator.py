"""Finds out whether programs run on the device on which the kernels were measured."""

import jax

_PRECISIONS = (None, "default", "tensorfloat32")


def on_measured_gpu() -> bool:
    """Returns whether programs run on a single NVIDIA GPU of the Hopper generation, with products in TF32.

    Kernels were measured there only. With several devices, `jax.jit` could not divide a kernel between them.
    """
    if jax.default_backend() != "gpu" or getattr(jax.config, "jax_default_matmul_precision", None) not in _PRECISIONS:
        return False
    (device, *others) = jax.devices()
    return not others and getattr(device, "compute_capability", None) == "9.0"
