"""A convolution over the last few tokens, by which keys and values depend on the preceding tokens.

Shape letters: `T` time steps, `B` examples, `F` features, `n` taps.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._checks import check_sizes

Array = jax.Array


class ShortConvolution(nnx.Module):
    """A causal depthwise convolution, as in layers of linear attention.

        y_t = silu(sum_{j < n} c_j * u_{t-j})

    Padding is skipped: t counts only tokens that are not padding. Tokens before the first one are zero. The dtype of
    the computation is that of the inputs.

    Args:
      features: number of features `F`.
      taps: number of tokens `n` on which an output depends, including its own token.
      param_dtype: dtype of the kernel.
      rngs: random keys.

    Raises:
      ValueError: if `taps` is below 1.

    References:
      Yang et al., NeurIPS 2024.
    """

    def __init__(self, features: int, taps: int, *, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        check_sizes(taps=taps)
        bound = taps**-0.5
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (taps, features), param_dtype, -bound, bound))

    def initialize_carry(self, batch_size: int, dtype: DTypeLike) -> Array:
        """Returns the tokens before the first, `[B, n - 1, F]`."""
        taps, features = self.kernel.get_value().shape
        return jnp.zeros((batch_size, taps - 1, features), dtype)

    def __call__(
        self, window: Array, inputs: Array, mask: Array | None = None, reset: Array | None = None
    ) -> tuple[Array, Array]:
        """Runs the convolution over a sequence.

        Args:
          window: the last n - 1 tokens before the inputs, `[B, n - 1, F]`.
          inputs: u, `[T, B, F]`.
          mask: `[T, B]` bool, False = padding; the outputs there are arbitrary.
          reset: `[T, B]` bool, True = a new sequence begins at this step, padding or not; None: nowhere.

        Returns:
          The last n - 1 tokens, and the outputs `[T, B, F]`.
        """
        kernel = self.kernel.get_value().astype(inputs.dtype)
        window = jnp.swapaxes(window, 0, 1)
        before, steps = window.shape[0], inputs.shape[0]
        resets = None if reset is None else jnp.cumsum(reset, axis=0, dtype=jnp.int32)
        number = resets  # of resets up to a token, by which the tokens of different sequences differ
        if mask is not None:  # move padding behind the tokens, whose order stays
            order = jnp.argsort(~mask, axis=0, stable=True)
            inputs = jnp.take_along_axis(inputs, order[..., None], axis=0)
            number = None if number is None else jnp.take_along_axis(number, order, axis=0)
        tokens = jnp.concatenate([window, inputs])
        if number is not None:
            number = jnp.pad(number, ((before, 0), (0, 0)))

        def earlier(back: int) -> Array:
            begin = before - back
            found = tokens[begin : begin + steps]
            if number is None:
                return found
            same = number[begin : begin + steps] == number[before:]
            return jnp.where(same[..., None], found, 0)

        outputs = jax.nn.silu(sum(c * earlier(j) for j, c in enumerate(kernel[:, None, None])))
        if number is not None and resets is not None:
            tokens = jnp.where((number == resets[-1:])[..., None], tokens, 0)
        if mask is None:
            return jnp.swapaxes(tokens[steps:], 0, 1), outputs
        count = jnp.cumsum(mask, axis=0, dtype=jnp.int32)
        last = count[-1:] + jnp.arange(before, dtype=jnp.int32)[:, None]
        outputs = jnp.take_along_axis(outputs, jnp.maximum(count - 1, 0)[..., None], axis=0)
        return jnp.swapaxes(jnp.take_along_axis(tokens, last[..., None], axis=0), 0, 1), outputs
