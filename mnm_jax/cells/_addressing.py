"""Addressing of the NTM and the DNC: one pure function per equation.

Shape letters: `B` examples, `H` heads of any kind, `R` read heads, `N` slots, `W` features of a slot, `S` shifts.
A weighting `[..., N]` has entries of at least 0 and the sum 1 (NTM) or at most 1 (DNC). Arguments are memories
`[B, N, W]`, weightings `[B, H, N]` or `[B, N]`, keys, erase and add vectors `[B, H, W]`, and gates, strengths and
sharpness `[B, H]` or `[B]`.

References:
  NTM: Graves et al., 2014 (arXiv 1410.5401), section 3. DNC: Graves et al., Nature 2016, Methods.
"""

import jax
import jax.numpy as jnp

from mnm_jax._precision import wide

Array = jax.Array

# Added under the roots of the norms, so that zero keys and slots have similarity 0 and finite derivatives.
_NORM_EPSILON = 1e-6
# Added to a weighting before the logarithm; far below any weight that has an effect.
_LOG_EPSILON = 1e-12


def content_weighting(memory: Array, keys: Array, strengths: Array) -> Array:
    """Returns the content weighting, by the similarity of keys and slots, `[B, H, N]`.

        C(M, k, beta)[i] = softmax_i(beta cos(k, M[i]))
        cos(a, b) = a . b / (sqrt(a . a + eps) sqrt(b . b + eps))

    References:
      NTM, equations 5 and 6; DNC, "Content-based addressing".
    """
    dtype = keys.dtype
    memory, keys, strengths = map(wide, (memory, keys, strengths))
    keys = keys * jax.lax.rsqrt(jnp.sum(keys * keys, -1, keepdims=True) + _NORM_EPSILON)
    # The product is divided by the slots' norms instead of the memory, because it is smaller.
    similarity = jnp.einsum("bhw,bnw->bhn", keys, memory)
    similarity = similarity * jax.lax.rsqrt(jnp.sum(memory * memory, -1) + _NORM_EPSILON)[:, None]
    return jax.nn.softmax(strengths[..., None] * similarity, axis=-1).astype(dtype)


def interpolate(content: Array, last: Array, gate: Array) -> Array:
    """Returns w^g_t = g w^c_t + (1 - g) w_{t-1}, `[B, H, N]` (NTM, equation 7)."""
    gate = gate[..., None]
    return gate * content + (1 - gate) * last


def shift(weighting: Array, shifts: Array) -> Array:
    """Returns w~[i] = sum_j w[i - j] s[j], indices modulo N, `[B, H, N]` (NTM, equation 8).

    s `[B, H, S]`, with odd S, are the weights of the shifts by j from -(S - 1) / 2 to (S - 1) / 2.
    """
    furthest = shifts.shape[-1] // 2
    # S is small: a sum of rolled copies is cheaper than a product with an N x N matrix of shifts.
    moved = [shifts[..., j + furthest, None] * jnp.roll(weighting, j, -1) for j in range(-furthest, furthest + 1)]
    return sum(moved[1:], moved[0])


def sharpen(weighting: Array, sharpness: Array) -> Array:
    """Returns w[i] = w~[i]^gamma / sum_j w~[j]^gamma, `[B, H, N]`.

    The powers are computed from logarithms, since all of them may underflow.

    References:
      NTM, equation 9.
    """
    logits = wide(sharpness)[..., None] * jnp.log(wide(weighting) + _LOG_EPSILON)
    return jax.nn.softmax(logits, axis=-1).astype(weighting.dtype)


def read(memory: Array, weightings: Array) -> Array:
    """Returns the read vectors r^i = sum_n w^i[n] M[n], `[B, R, W]` (NTM, equation 2; DNC, "Read")."""
    return jnp.einsum("brn,bnw->brw", weightings, memory)


def write(memory: Array, weightings: Array, erase: Array, add: Array) -> Array:
    """Returns the memory after all heads erase and then all heads add, `[B, N, W]`.

        M_t = M_{t-1} o prod_h (1 - w^h (x) e^h) + sum_h w^h (x) a^h

    References:
      NTM, equations 3 and 4; DNC, "Write".
    """
    for head in range(erase.shape[1]):
        memory = memory * (1 - weightings[:, head, :, None] * erase[:, head, None])
    return memory + jnp.einsum("bhn,bhw->bnw", weightings, add)


def retention(free_gates: Array, read_weights: Array) -> Array:
    """Returns psi_t = prod_i (1 - f^i_t w^{r,i}_{t-1}), the share of each slot that is not freed, `[B, N]`.

    References:
      DNC, "Dynamic memory allocation".
    """
    kept = 1 - free_gates[..., None] * read_weights
    product = kept[:, 0]
    for head in range(1, kept.shape[1]):
        product = product * kept[:, head]
    return product


def usage(last: Array, write_weights: Array, retained: Array) -> Array:
    """Returns u_t = (u_{t-1} + w^w_{t-1} - u_{t-1} o w^w_{t-1}) o psi_t, `[B, N]`.

    References:
      DNC, "Dynamic memory allocation".
    """
    return (last + write_weights - last * write_weights) * retained


def allocation(used: Array) -> Array:
    """Returns the allocation weighting, which prefers the least used slots, `[B, N]`.

        a[phi[j]] = (1 - u[phi[j]]) prod_{i<j} u[phi[i]],   phi: the slots from least to most used

    Ties are broken by the index of the slot. The order is not differentiated, as in the paper.

    References:
      DNC, "Dynamic memory allocation".
    """
    order = jnp.argsort(used, axis=-1, stable=True)
    ascending = jnp.take_along_axis(used, order, -1)
    before = jnp.cumprod(jnp.concatenate([jnp.ones_like(used[:, :1]), ascending[:, :-1]], -1), -1)
    return jnp.put_along_axis(jnp.zeros_like(used), order, (1 - ascending) * before, -1, inplace=False)


def write_weighting(content: Array, allocated: Array, allocation_gate: Array, write_gate: Array) -> Array:
    """Returns w^w_t = g^w (g^a a_t + (1 - g^a) c^w_t), `[B, N]` (DNC, "Dynamic memory allocation")."""
    to_free = allocation_gate[:, None]
    return write_gate[:, None] * (to_free * allocated + (1 - to_free) * content)


def precedence(last: Array, write_weights: Array) -> Array:
    """Returns p_t = (1 - sum_i w^w_t[i]) p_{t-1} + w^w_t, the degree to which each slot was written last, `[B, N]`.

    References:
      DNC, "Temporal memory linkage".
    """
    return (1 - jnp.sum(write_weights, -1, keepdims=True)) * last + write_weights


def link(last: Array, write_weights: Array, last_precedence: Array) -> Array:
    """Returns L_t, where L_t[i, j] is the degree to which slot i was written right after slot j, `[B, N, N]`.

        L_t[i, j] = (1 - w^w_t[i] - w^w_t[j]) L_{t-1}[i, j] + w^w_t[i] p_{t-1}[j],   L_t[i, i] = 0

    References:
      DNC, "Temporal memory linkage".
    """
    i, j = write_weights[:, :, None], write_weights[:, None, :]
    linked = (1 - i - j) * last + i * last_precedence[:, None, :]
    return jnp.where(jnp.eye(last.shape[-1], dtype=bool)[None], 0, linked)


def follow(links: Array, read_weights: Array) -> tuple[Array, Array]:
    """Returns the forward weightings L_t w^{r,i}_{t-1} and the backward ones L_t^T w^{r,i}_{t-1}, `[B, R, N]` each.

    References:
      DNC, "Temporal memory linkage".
    """
    forward = jnp.einsum("bij,brj->bri", links, read_weights)
    backward = jnp.einsum("bij,bri->brj", links, read_weights)
    return forward, backward


def read_weighting(backward: Array, content: Array, forward: Array, modes: Array) -> Array:
    """Returns w^{r,i}_t = pi^i[1] b^i_t + pi^i[2] c^{r,i}_t + pi^i[3] f^i_t, `[B, R, N]`; modes pi `[B, R, 3]`.

    References:
      DNC, "Read weighting".
    """
    return modes[..., 0, None] * backward + modes[..., 1, None] * content + modes[..., 2, None] * forward
