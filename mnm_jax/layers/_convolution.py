"""A convolution over the last few tokens, which lets keys and values see what came just before.

Shape letters: `T` time steps, `B` examples, `F` features, `n` taps.
"""

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array


class ShortConvolution(nnx.Module):
    """Every feature on its own, causal, as layers of linear attention have it (Yang et al., 2024).

        y_t = silu(sum_{j < n} c_j * u_{t-j})

    Tokens of padding are left out: t counts the real ones. What comes before the first is zero.

    Args:
      features: `F`.
      taps: `n`, the token itself among them.

    Raises:
      ValueError: no taps.
    """

    def __init__(self, features: int, taps: int, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        if taps < 1:
            raise ValueError(f"taps must be >= 1, got {taps}.")
        bound = taps**-0.5
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (taps, features), dtype, -bound, bound))

    def initialize_carry(self, batch_size: int) -> Array:
        """The tokens before the first, `[n - 1, B, F]`."""
        kernel = self.kernel.get_value()
        return jnp.zeros((kernel.shape[0] - 1, batch_size, kernel.shape[1]), kernel.dtype)

    def __call__(self, window: Array, inputs: Array, real: Array | None = None) -> tuple[Array, Array]:
        """Inputs `[T, B, F]` after the tokens of `window`; the last n - 1 tokens, and outputs `[T, B, F]`.

        Args:
            real: `[T, B]`, False for padding, whose outputs mean nothing.
        """
        kernel = self.kernel.get_value()
        before, steps = window.shape[0], inputs.shape[0]
        if real is not None:  # the real tokens first, in their order
            real = real.astype(bool)
            order = jnp.argsort(~real, axis=0, stable=True)
            inputs = jnp.take_along_axis(inputs, order[..., None], axis=0)
        tokens = jnp.concatenate([window, inputs])
        outputs = jax.nn.silu(
            sum(c * tokens[before - j : before - j + steps] for j, c in enumerate(kernel[:, None, None]))
        )
        if real is None:
            return tokens[steps:], outputs
        count = jnp.cumsum(real, axis=0)
        last = count[-1:] + jnp.arange(before)[:, None]
        outputs = jnp.take_along_axis(outputs, jnp.maximum(count - 1, 0)[..., None], axis=0)
        return jnp.take_along_axis(tokens, last[..., None], axis=0), outputs
