"""The backends, and the GPUs for which "auto" may select a kernel."""

import jax

from mnm_jax._vary import varying_axes

BACKENDS = ("auto", "xla", "pallas")
# Settings with which a Hopper GPU computes products of float32 in TF32.
_PRECISIONS = (None, "default", "tensorfloat32")


def on_measured_gpu(x: jax.Array) -> bool:
    """Returns whether a program with `x` runs on a single NVIDIA GPU of the Hopper generation, with products in TF32.

    The kernels were measured on one H200. `jax.jit` cannot partition a kernel over several devices. A kernel has no
    symbolic sizes, as `jax.export` may have, and `jax.shard_map` with its default checks does not accept it.
    """
    if not all(isinstance(size, int) and size for size in x.shape) or varying_axes(x):
        return False
    if getattr(jax.config, "jax_default_device", None) is not None:
        return False  # programs may run elsewhere
    if jax.default_backend() != "gpu" or getattr(jax.config, "jax_default_matmul_precision", None) not in _PRECISIONS:
        return False
    (device, *others) = jax.devices()
    return not others and getattr(device, "compute_capability", None) == "9.0"
