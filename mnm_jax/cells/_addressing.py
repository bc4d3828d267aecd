"""How the NTM and the DNC find their slots: each step of the addressing a pure function with its equation.

Shape letters: `B` examples, `H` heads of any kind, `R` read heads, `N` slots, `W` features of a slot, `S` shifts.
A weighting is `[..., N]`: at least 0, of sum 1 (NTM) or at most 1 (DNC).

Sources: NTM = Graves et al., 2014 (arXiv 1410.5401), section 3; DNC = Graves et al., Nature 2016, Methods.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

# Within the roots of the norms: a key or a slot of zeros is like nothing, and its derivatives are finite.
_NORM_EPSILON = 1e-6
# Within the logarithm of a weighting; far below any weight that matters.
_LOG_EPSILON = 1e-12


def content_weighting(memory: Array, keys: Array, strengths: Array) -> Array:
    """C(M, k, beta)[i] = softmax_i(beta cos(k, M[i])): `[B, N, W]`, `[B, H, W]`, `[B, H]` to `[B, H, N]`.

    cos(a, b) = a . b / (sqrt(a . a + eps) sqrt(b . b + eps)).

    Source: NTM equations 5 and 6; DNC, "Content-based addressing".
    """
    keys = keys * jax.lax.rsqrt(jnp.sum(keys * keys, -1, keepdims=True) + _NORM_EPSILON)
    # Divided after the product, which is smaller than the memory.
    similarity = jnp.einsum("bhw,bnw->bhn", keys, memory)
    similarity = similarity * jax.lax.rsqrt(jnp.sum(memory * memory, -1) + _NORM_EPSILON)[:, None]
    return jax.nn.softmax(strengths[..., None] * similarity, axis=-1)


def interpolate(content: Array, last: Array, gate: Array) -> Array:
    """w^g_t = g w^c_t + (1 - g) w_{t-1}: `[B, H, N]` twice, `[B, H]`. Source: NTM equation 7."""
    gate = gate[..., None]
    return gate * content + (1 - gate) * last


def shift(weighting: Array, shifts: Array) -> Array:
    """w~[i] = sum_j w[i - j] s[j], i modulo N: `[B, H, N]`, `[B, H, S]` to `[B, H, N]`. Source: NTM equation 8.

    S is odd; j runs from -(S - 1) / 2 to (S - 1) / 2.
    """
    furthest = shifts.shape[-1] // 2
    # Few shifts: a sum of rolled copies costs less than a product with N x N shifts.
    moved = [shifts[..., j + furthest, None] * jnp.roll(weighting, j, -1) for j in range(-furthest, furthest + 1)]
    return sum(moved[1:], moved[0])


def sharpen(weighting: Array, sharpness: Array) -> Array:
    """w[i] = w~[i]^gamma / sum_j w~[j]^gamma: `[B, H, N]`, `[B, H]`. Source: NTM equation 9.

    By logarithms: the powers themselves may all be too small to be represented.
    """
    return jax.nn.softmax(sharpness[..., None] * jnp.log(weighting + _LOG_EPSILON), axis=-1)


def read(memory: Array, weightings: Array) -> Array:
    """r^i = sum_n w^i[n] M[n]: `[B, N, W]`, `[B, R, N]` to `[B, R, W]`. Source: NTM equation 2; DNC, "Read"."""
    return jnp.einsum("brn,bnw->brw", weightings, memory)


def write(memory: Array, weightings: Array, erase: Array, add: Array) -> Array:
    """M_t = M_{t-1} o prod_h (1 - w^h (x) e^h) + sum_h w^h (x) a^h: `[B, N, W]`, `[B, H, N]`, `[B, H, W]` twice.

    Source: NTM equations 3 and 4 (all heads erase, then all add); DNC, "Write".
    """
    for head in range(erase.shape[1]):
        memory = memory * (1 - weightings[:, head, :, None] * erase[:, head, None])
    return memory + jnp.einsum("bhn,bhw->bnw", weightings, add)


def retention(free_gates: Array, read_weights: Array) -> Array:
    """psi_t = prod_i (1 - f^i_t w^{r,i}_{t-1}), how much of a slot is not freed: `[B, R]`, `[B, R, N]` to `[B, N]`.

    Source: DNC, "Dynamic memory allocation", as `usage` and `allocation`.
    """
    kept = 1 - free_gates[..., None] * read_weights
    product = kept[:, 0]
    for head in range(1, kept.shape[1]):
        product = product * kept[:, head]
    return product


def usage(last: Array, write_weights: Array, retained: Array) -> Array:
    """u_t = (u_{t-1} + w^w_{t-1} - u_{t-1} o w^w_{t-1}) o psi_t: all `[B, N]`."""
    return (last + write_weights - last * write_weights) * retained


def allocation(used: Array) -> Array:
    """a[phi[j]] = (1 - u[phi[j]]) prod_{i<j} u[phi[i]], phi the slots from least to most used: `[B, N]`.

    Of slots used alike the first comes first. The order is not differentiated, as in the paper.
    """
    order = jnp.argsort(used, axis=-1, stable=True)
    ascending = jnp.take_along_axis(used, order, -1)
    before = jnp.cumprod(jnp.concatenate([jnp.ones_like(used[:, :1]), ascending[:, :-1]], -1), -1)
    return jnp.put_along_axis(jnp.zeros_like(used), order, (1 - ascending) * before, -1, inplace=False)


def write_weighting(content: Array, allocated: Array, allocation_gate: Array, write_gate: Array) -> Array:
    """w^w_t = g^w (g^a a_t + (1 - g^a) c^w_t): `[B, N]` twice, `[B]` twice. Source: DNC, as above."""
    to_free = allocation_gate[:, None]
    return write_gate[:, None] * (to_free * allocated + (1 - to_free) * content)


def precedence(last: Array, write_weights: Array) -> Array:
    """p_t = (1 - sum_i w^w_t[i]) p_{t-1} + w^w_t, how recently a slot was written: all `[B, N]`.

    Source: DNC, "Temporal memory linkage", as `link` and `follow`.
    """
    return (1 - jnp.sum(write_weights, -1, keepdims=True)) * last + write_weights


def link(last: Array, write_weights: Array, last_precedence: Array) -> Array:
    """L_t[i, j], how much i was written next after j: `[B, N, N]`, `[B, N]` twice.

    L_t[i, j] = (1 - w^w_t[i] - w^w_t[j]) L_{t-1}[i, j] + w^w_t[i] p_{t-1}[j],  L_t[i, i] = 0.
    """
    i, j = write_weights[:, :, None], write_weights[:, None, :]
    linked = (1 - i - j) * last + i * last_precedence[:, None, :]
    return jnp.where(jnp.eye(last.shape[-1], dtype=bool)[None], 0, linked)


def follow(links: Array, read_weights: Array) -> tuple[Array, Array]:
    """(f^i_t = L_t w^{r,i}_{t-1}, b^i_t = L_t^T w^{r,i}_{t-1}): `[B, N, N]`, `[B, R, N]` to `[B, R, N]` twice."""
    forward = jnp.einsum("bij,brj->bri", links, read_weights)
    backward = jnp.einsum("bij,bri->brj", links, read_weights)
    return forward, backward


def read_weighting(backward: Array, content: Array, forward: Array, modes: Array) -> Array:
    """w^{r,i}_t = pi^i[1] b^i_t + pi^i[2] c^{r,i}_t + pi^i[3] f^i_t: `[B, R, N]` thrice, `[B, R, 3]`.

    Source: DNC, "Read weighting".
    """
    return modes[..., 0, None] * backward + modes[..., 1, None] * content + modes[..., 2, None] * forward
