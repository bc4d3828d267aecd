"""Write rules. A rule decides the factors of a write, `Pair(x_l, delta_l)` a layer, and nothing else.

How the pairs are applied and kept is the storage's affair: a rule sees the weights only through `product` and
`product_transposed`, and goes through `slow_product` for a map of its own.
"""

import itertools

import jax
import jax.numpy as jnp

from mnm_jax.memory._network import Network, forward, key_cotangent, pull_back
from mnm_jax.memory._step_size import gram, solve
from mnm_jax.memory._types import Pair, ReadPath, Storage, TargetMaps

Array = jax.Array


def local_pairs(
    network: Network,
    weights: Storage,
    targets: TargetMaps,
    keys: Array,
    values: Array,
    *,
    step_size: str,
    epsilon: float,
    condition_on_key: bool,
) -> tuple[tuple[Pair, ...], Array]:
    """The perceptron rule of MNM-p (section 3.3): delta_l = z_l - t_l at rate one, t_l = g_l(v^w) learned.

    paper: 2 / (H O_l) (z_l - t_l); sum: 2 (z_l - t_l); normalised: (X_l X_l^T + epsilon I)^-1 (Z_l - T_l), which is
    (z_l - t_l) / (|x_l|^2 + epsilon) for one head. Activations are those before the write and the derivative of the
    activation is left out: the rule is local. Heads enter only through sums over heads, so their order is immaterial.

    Returns the pairs and the memory's answer f(k^w) `[B, H, V]` before the write.
    """
    inputs, outputs, _ = forward(network, weights, keys)
    context = jnp.concatenate([values, keys], -1) if condition_on_key else values
    wanted = weights.slow_product(context, targets.kernel) + targets.bias.astype(context.dtype)[None, None]
    ends = list(itertools.accumulate(z.shape[-1] for z in outputs))
    pairs = []
    for x, z, t in zip(inputs, outputs, jnp.split(wanted, ends[:-1], axis=-1), strict=True):
        error = z - t
        match step_size:
            case "paper":
                delta = error * (2 / (z.shape[-2] * z.shape[-1]))
            case "sum":
                delta = 2 * error
            case "normalised":
                delta = solve(gram(x), error, epsilon)
        pairs.append(Pair(x, delta))
    return tuple(pairs), outputs[-1]


def gradient_pairs(
    network: Network,
    weights: Storage,
    keys: Array,
    values: Array,
    path: ReadPath | None,
    *,
    step_size: str,
    epsilon: float,
) -> tuple[tuple[Pair, ...], Array]:
    """The gradient step of MNM-g (section 3.2) at rate one, taken inside the scan and differentiated through.

    With the error e_h = f(k_h) - v_h and its pull-back delta_l = (d f / d (x_l W_l))^T c, the gradient of any loss
    whose derivative at the output is c is x_l (x) delta_l in layer l. The step sizes differ in c alone:

        paper:       c = 2 e / (H V)         the gradient of the mean of squares
        sum:         c = 2 e                 the gradient of the sum of squares
        normalised:  c = (N + epsilon I)^-1 e,   N = sum_l s_l X_l X_l^T,   s_l = |delta_l(e)|^2 / |e|^2

    Normalised: a step with c moves the answers by - J J^T c to first order, J the Jacobian of f with respect to all
    weights; c = (J J^T)^-1 e would meet every target. N is J J^T with the backward maps of layer l replaced by their
    mean square gain s_l (one for the last layer). It is exact for a linear memory, N = X X^T, with any number of
    heads (see `step_size`), and for one head in any network it is the Polyak step 2 L / |grad L|^2, L = |e|^2.

    With a `path` the derivative is total: the write key and value came from a controller that had read this same
    memory, and what they hand back to that read adds H pairs of its own.

    Returns the pairs and the memory's answer f(k^w) `[B, H, V]` before the write.
    """
    passed = forward(network, weights, keys)
    predicted = passed.outputs[-1]
    error = predicted - values
    match step_size:
        case "paper":
            cotangent = error * (2 / (error.shape[-2] * error.shape[-1]))
        case "sum":
            cotangent = 2 * error
        case "normalised":
            of_error = pull_back(network, weights, passed, error)
            kernel = _scalar_kernel(passed.inputs, of_error)
            cotangent = solve(kernel, error, epsilon)
    if step_size == "normalised" and error.shape[1] == 1:
        # One head: c is a multiple of e, and so is its pull-back.
        scale = solve(kernel, jnp.ones_like(kernel), epsilon)
        deltas = tuple(scale * delta for delta in of_error)
    else:
        deltas = pull_back(network, weights, passed, cotangent)
    pairs = tuple(map(Pair, passed.inputs, deltas))
    if path is None:
        return pairs, predicted
    read = forward(network, weights, path.keys)
    handed_back = path.pull_back(key_cotangent(network, weights, deltas), -cotangent)
    read_pairs = map(Pair, read.inputs, pull_back(network, weights, read, handed_back))
    return tuple(map(_join_heads, pairs, read_pairs)), predicted


def delta_pairs(network: Network, weights: Storage, keys: Array, values: Array) -> tuple[tuple[Pair, ...], Array]:
    """The delta rule of a matrix, delta = k W - v at rate one, for keys of any length; and k W `[B, H, V]`."""
    (x,), (answer,), _ = forward(network, weights, keys)
    return (Pair(x, answer - values),), answer


def hebbian_pairs(network: Network, weights: Storage, keys: Array, values: Array) -> tuple[tuple[Pair, ...], Array]:
    """The Hebbian rule of a matrix, delta = -v at rate one; and k W `[B, H, V]`."""
    (x,), (answer,), _ = forward(network, weights, keys)
    return (Pair(x, -values),), answer


def _join_heads(a: Pair, b: Pair) -> Pair:
    return Pair(jnp.concatenate([a.inputs, b.inputs], 1), jnp.concatenate([a.delta, b.delta], 1))


def _scalar_kernel(inputs: tuple[Array, ...], deltas: tuple[Array, ...]) -> Array:
    """N = sum_l s_l X_l X_l^T `[B, H, H]`; deltas are the pull-backs of the error, the last one being the error."""
    size = _square_norm(deltas[-1])
    kernel = gram(inputs[-1])
    for x, delta in zip(inputs[:-1], deltas[:-1], strict=True):
        gain = _square_norm(delta) / (size + float(jnp.finfo(size.dtype).tiny) ** 0.5)
        kernel = kernel + gain * gram(x)
    return kernel


def _square_norm(x: Array) -> Array:
    return jnp.sum(x * x, axis=(-2, -1), keepdims=True)
