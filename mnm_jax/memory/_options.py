"""Options of a write from later papers, and the normalisation of keys.

Shape letters: `B` examples, `H` heads, `K` key features.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax._checks import check_choice, check_flags, check_positive, check_sizes
from mnm_jax._precision import wide

Array = jax.Array

KEY_NORMS = (None, "l2", "layer")
SMALLEST = 1e-23  # a squared norm; the derivative of its inverse root is 3e34, near the end of single precision
FORGET_LITTLE = -4.0  # initial bias of a forget gate: 2% per write


class WriteOptions(NamedTuple):
    """The options of a write besides its rule; all off by default.

    With G_t the rule's change at rate one (phi_t = phi_{t-1} - beta_t G_t is the paper's write), in this order:

        k <- k / |k|  ("l2")  or  (k - mean k) / sqrt(var k)  ("layer")                 key_norm
        G_t <- G_t min(1, c / |G_t|)                                                    max_norm = c
        G_t <- a G_t                                                                    never_worse
        U_t, o_t = optimizer(G_t, o_{t-1}, phi_{t-1}),   otherwise U_t = - G_t          optimizer
        S_t = m_t S_{t-1} + beta_t U_t,                  otherwise S_t = beta_t U_t     momentum
        phi_t = (1 - alpha_t) phi_{t-1} + S_t,           otherwise phi_{t-1} + S_t      forget

    With `inner_steps` = n, everything except the normalisation and the forgetting is repeated n times, each time from
    the weights after the previous inner step.

    With `optimizer`, `momentum` or `forget`, earlier weights cannot be computed from later weights and the pairs, so a
    cell runs in the execution form "plain".

    Args:
      key_norm: normalisation of write and read keys, per head: None, "l2" (as in DeltaNet) or "layer" (layer
        normalisation without gain and bias). A key becomes zeros if its squared norm ("layer": its variance) is below
        1e-23 or overflows; for "l2" in float32, if it is shorter than 3e-12 or longer than 1.8e19.
      max_norm: bound on the Frobenius norm of G over all layers; None for no bound.
      inner_steps: gradient steps per write.
      optimizer: an `optax.GradientTransformation`, with one state per example; beta multiplies its learning rate. An
        optimiser that takes a square root needs `eps_root` > 0, since the derivative of the root at zero is infinite.
      momentum: whether a write takes a gate m_t in (0, 1), `[B]`, by the keyword `momentum`.
      forget: whether a write takes a gate alpha_t in (0, 1), `[B]`, by the keyword `forget`.
      never_worse: whether to shorten a write that would increase its own loss, the sum of |f(k_h) - v_h|^2 or the loss
        of `custom_memory`: a is the largest of 1, 1/4, 1/16, 1/64 and 0 for which phi_{t-1} - beta_t a G_t has no
        larger loss, as far as the dtype resolves it. a is a constant of every derivative. This takes one more forward
        pass over four times the write keys. Not with `optimizer`, `momentum` or `forget`, which change more than G_t.

    Examples:
      The delta rule with a forget gate. At gate 1 only the second write is left; its error is that before forgetting:

      >>> from mnm_jax.memory import matrix_memory
      >>> memory = matrix_memory(2, 1, options=WriteOptions(key_norm="l2", forget=True))
      >>> memory.gates
      ('forget',)
      >>> params = memory.init(jax.random.key(0))
      >>> state, keys = memory.start(params, 1), jnp.array([[[3.0, 4.0]]])
      >>> for value, forget in [(5.0, 0.0), (7.0, 1.0)]:
      ...     state, _ = memory.write(
      ...         params, state, keys, jnp.full((1, 1, 1), value), rate=jnp.full(1, 0.5), forget=jnp.full(1, forget)
      ...     )
      ...     print(f"{memory.read(params, state, keys)[0, 0, 0]:.2f}")
      2.50
      2.25

    References:
      key_norm: Yang et al., NeurIPS 2024; Ba et al., 2016. max_norm: Pascanu et al., ICML 2013. inner_steps: Finn et
      al., ICML 2017. momentum, forget: Behrouz et al., 2025 (Titans), equations 13 and 14.
    """

    key_norm: str | None = None
    max_norm: float | None = None
    inner_steps: int = 1
    optimizer: Any = None
    momentum: bool = False
    forget: bool = False
    never_worse: bool = False

    @property
    def gates(self) -> tuple[str, ...]:
        """The names of the gates that a write takes besides the rate."""
        return tuple(name for name in ("forget", "momentum") if getattr(self, name))

    @property
    def pairs_only(self) -> bool:
        """True if a write changes the weights only by subtracting pairs."""
        return self.optimizer is None and not self.gates


PAPER = WriteOptions()
TRIALS = (1.0, 1 / 4, 1 / 16, 1 / 64)  # the lengths that never_worse tries


def longest(before: Array, after: Array) -> Array:
    """Returns the largest of TRIALS whose loss `[B, trials]` is not above `before` `[B]`, otherwise 0."""
    trials = jnp.asarray(TRIALS, after.dtype)[None]
    return jax.lax.stop_gradient(jnp.max(jnp.where(after <= before[:, None], trials, 0), axis=1))


def changed(options: WriteOptions, *names: str) -> list[str]:
    """Returns the given names whose options are not off."""
    return [name for name in names if getattr(options, name) != getattr(PAPER, name)]


def check_options(options: WriteOptions) -> None:
    """Raises TypeError unless the options are `WriteOptions`, and ValueError for an option out of range."""
    if not isinstance(options, WriteOptions):
        raise TypeError(f"options must be a WriteOptions, got {options!r}: pass WriteOptions(...), or leave it out.")
    check_choice("key_norm", options.key_norm, KEY_NORMS)
    if options.max_norm is not None:
        check_positive(max_norm=options.max_norm)
    check_sizes(inner_steps=options.inner_steps)
    check_flags(momentum=options.momentum, forget=options.forget, never_worse=options.never_worse)
    if options.never_worse and not options.pairs_only:
        others = "optimizer" if options.optimizer is not None else " and ".join(options.gates)
        raise ValueError(
            f"never_worse must be False with {others}, got True: such a write is more than a step on its own loss; "
            "leave one of the options out."
        )
    if options.optimizer is not None and not all(hasattr(options.optimizer, name) for name in ("init", "update")):
        raise TypeError(f"optimizer must be an optax.GradientTransformation, got {type(options.optimizer).__name__}.")


def normalise(keys: Array, how: str | None) -> Array:
    """Returns keys `[..., K]` normalised according to `WriteOptions.key_norm`; a key of zeros stays zero.

    A key whose square is below `SMALLEST`, or infinite although the key is finite, counts as zero. Computed in at least
    float32, since float16 has no squares of numbers above 256 or below 0.0002.
    """
    if how is None or keys.shape[-2:-1] == (0,):
        return keys
    dtype, keys = keys.dtype, wide(keys)
    if how == "layer":
        keys = keys - jnp.mean(keys, -1, keepdims=True)
    square = (jnp.sum if how == "l2" else jnp.mean)(keys * keys, axis=-1, keepdims=True)
    # Below, the root of one is taken instead: the root's derivative there is infinite, and times zero it is NaN.
    zero = square <= SMALLEST  # not NaN, which stays NaN
    return jnp.where(zero, 0, keys * jax.lax.rsqrt(jnp.where(zero, 1, square))).astype(dtype)


def gate_biases(gates: tuple[str, ...], forget: float = FORGET_LITTLE, rate: float = 0.0) -> list[float]:
    """Returns the initial biases of the linear map to the write rate, first, and to a memory's other gates."""
    return [{"rate": rate, "forget": forget}.get(name, 0.0) for name in ("rate", *gates)]
