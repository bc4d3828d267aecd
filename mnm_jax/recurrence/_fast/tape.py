"""What one step of a cell asks of its memory's weights, and what it adds to them.

A step touches the weights only through products and through the pairs that it subtracts. So a step can be run again
in the backward pass without any weights: the answers to its products are known from the forward pass, and its
derivative needs nothing but a product with the transposed weights for every answer.

Shape letters: `B` examples, `Q` rows asked at once, `H` rows written, `I`/`O` a layer's inputs and outputs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax.memory._storage.products import mix_rows
from mnm_jax.memory._types import Pair, Storage

Array = jax.Array


RULE_MAP = -1  # the slow map of the write rule, the last one among the kernels


class Question(NamedTuple):
    """A product that a step asks for: x W_l, or c W_l^T if transposed. Static."""

    layer: int
    transposed: bool


class Products(NamedTuple):
    """asked: what went into the products of one step, in order; answers: what came out."""

    asked: list[Array]
    answers: list[Array]


class Log:
    """What has happened in one step: questions to the memory `[B, Q, .]`, products with slow weights, pairs subtracted.

    memory, maps: the products; questions: those of the memory; linear: which map each product of `maps` was with, the
    index of one of the cell's or `RULE_MAP`. written: the pairs that the rest of the step sees; pairs: those among
    them that stay, the others being zero; writes: how often pairs were subtracted.
    """

    def __init__(self):
        self.questions: list[Question] = []
        self.linear: list[int] = []
        self.memory = Products([], [])
        self.maps = Products([], [])
        self.pairs: tuple[Pair, ...] | None = None
        self.written: tuple[Pair, ...] | None = None
        self.writes = 0

    def add_answer(self, question: Question, asked: Array, answer: Array) -> Array:
        self.questions.append(question)
        self.memory.asked.append(asked)
        self.memory.answers.append(answer)
        return answer

    def add_map(self, index: int, asked: Array, answer: Array) -> Array:
        self.linear.append(index)
        self.maps.asked.append(asked)
        self.maps.answers.append(answer)
        return answer

    def add_pairs(self, pairs: tuple[Pair, ...], fork: Array | None) -> tuple[Pair, ...]:
        """Logs what was written, with `fork [B]` for those of whom it does not stay, and returns what does."""
        self.writes += 1
        stay = pairs if fork is None else _silence(pairs, ~fork)
        self.pairs = _join_all(self.pairs, stay)
        self.written = self.pairs if fork is None else _join_all(self.written, pairs)
        return stay


class Recorder(NamedTuple):
    """A `Storage` that answers from another one and logs it.

    keep: `[B]` bool, who writes at all; None: everybody. fork: `[B]` bool, whose writes only this step sees; None:
    nobody. late: the writes of a step go into the storage together, by `close`, since it counts steps by them.
    passing: pairs of this step that are not in the storage.
    """

    storage: Storage
    log: Log
    keep: Array | None
    fork: Array | None = None
    late: bool = False
    passing: tuple[Pair, ...] | None = None

    @property
    def batch_size(self) -> int:
        return self.storage.batch_size

    def product(self, layer: int, x: Array) -> Array:
        answer = self.storage.product(layer, x)
        if self.passing is not None:
            answer = answer - _through(x, *self.passing[layer])
        return self.log.add_answer(Question(layer, False), x, answer)

    def product_transposed(self, layer: int, c: Array) -> Array:
        answer = self.storage.product_transposed(layer, c)
        if self.passing is not None:
            answer = answer - _through(c, *self.passing[layer][::-1])
        return self.log.add_answer(Question(layer, True), c, answer)

    def dot_general(self, index: int) -> Callable[..., Array]:
        """`lax.dot_general` for the linear map of that index."""

        def logged(x, kernel, *args, **kwargs):
            return self.log.add_map(index, x, jax.lax.dot_general(x, kernel, *args, **kwargs))

        return logged

    def slow_product(self, x: Array, kernel: Array) -> Array:
        return self.log.add_map(RULE_MAP, x, self.storage.slow_product(x, kernel))

    def subtract(self, pairs: tuple[Pair, ...]) -> "Recorder":
        pairs = _silence(pairs, self.keep)
        stay = self.log.add_pairs(pairs, self.fork)
        if self.late:
            return self._replace(passing=_join_all(self.passing, pairs))
        written = self._replace(storage=self.storage.subtract(stay))
        if self.fork is None:
            return written
        return written._replace(passing=_join_all(self.passing, _silence(pairs, self.fork)))

    def close(self) -> Storage:
        """The storage after the step."""
        return self.storage.subtract(self.log.pairs) if self.late else self.storage


class Replay(NamedTuple):
    """A `Storage` that gives known answers, with the derivatives that the weights would give them.

    storage: the weights before the step; they are not differentiated. answers: of the forward pass, in order.
    probes: zeros added to the answers; their cotangents tell what the weights' cotangents grow by.
    turned: the kernels of the slow linear maps, transposed.
    """

    storage: Storage
    log: Log
    keep: Array | None
    fork: Array | None
    answers: "Answers"
    probes: "Answers"
    turned: list[Array]

    @property
    def batch_size(self) -> int:
        return self.storage.batch_size

    def product(self, layer: int, x: Array) -> Array:
        return self._answer(Question(layer, False), x)

    def product_transposed(self, layer: int, c: Array) -> Array:
        return self._answer(Question(layer, True), c)

    def dot_general(self, index: int) -> Callable[..., Array]:
        def replayed(x, kernel, *args, **kwargs):
            del kernel, args, kwargs  # as in the forward pass, where they made the answer
            return self._map(index, x)

        return replayed

    def slow_product(self, x: Array, kernel: Array) -> Array:
        del kernel
        return self._map(RULE_MAP, x)

    def subtract(self, pairs: tuple[Pair, ...]) -> "Replay":
        self.log.add_pairs(_silence(pairs, self.keep), self.fork)
        return self

    def _map(self, index: int, x: Array) -> Array:
        place = len(self.log.linear)
        answer = _replay_map(x, self.turned[index], self.answers.maps[place])
        return self.log.add_map(index, x, answer + self.probes.maps[place])

    def _answer(self, question: Question, asked: Array) -> Array:
        place = len(self.log.questions)
        written = None if self.log.written is None else self.log.written[question.layer]
        answer = _replay(question, self.storage, asked, written, self.answers.memory[place])
        return self.log.add_answer(question, asked, answer + self.probes.memory[place])


class Answers(NamedTuple):
    """Of the products of a step, or what is shaped like them. memory: `[B, Q, .]` each; maps: of slow linear maps."""

    memory: list[Array]
    maps: list[Array]


@jax.custom_vjp
def _replay_map(x: Array, turned: Array, answer: Array) -> Array:
    """answer = x kernel, whose derivative in the kernel is left to the end of the backward pass."""
    del x, turned
    return answer


_replay_map.defvjp(
    lambda x, turned, answer: (answer, turned),
    lambda turned, cotangent: (cotangent @ turned.astype(cotangent.dtype), None, None),
)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _replay(question: Question, storage: Storage, asked: Array, written: Pair | None, answer: Array) -> Array:
    """answer = asked (W - X^T D), with W in `storage` and the pair (X, D) written in this step before it was asked."""
    del question, storage, asked, written
    return answer


def _replay_forward(question, storage, asked, written, answer):
    return answer, (storage, asked, written)


def _replay_backward(question: Question, saved: Any, cotangent: Array):
    storage, asked, written = saved
    backwards = storage.product if question.transposed else storage.product_transposed
    of_asked = backwards(question.layer, cotangent)
    if written is None:
        return None, of_asked, None, None
    x, d = written[::-1] if question.transposed else written
    scores = jnp.einsum("bqi,bhi->bqh", asked, x)
    of_scores = jnp.einsum("bqo,bho->bqh", cotangent, d)
    of_asked = of_asked - jnp.einsum("bqh,bhi->bqi", of_scores, x)
    of_x = -mix_rows(of_scores, asked)
    of_d = -mix_rows(scores, cotangent)
    return None, of_asked, Pair(*((of_d, of_x) if question.transposed else (of_x, of_d))), None


_replay.defvjp(_replay_forward, _replay_backward)


def growth(questions: list[Question], asked: list[Array], cotangents: list[Array], layers: int) -> tuple[Pair, ...]:
    """The pairs by which the cotangent of the weights grows, q (x) d(q W), as `Storage.subtract` takes them."""
    rows: list[Pair | None] = [None] * layers
    for question, x, c in zip(questions, asked, cotangents, strict=True):
        pair = Pair(c, -x) if question.transposed else Pair(x, -c)
        rows[question.layer] = pair if rows[question.layer] is None else _join(rows[question.layer], pair)
    return tuple(rows)


def _join(a: Pair, b: Pair) -> Pair:
    return Pair(jnp.concatenate([a.inputs, b.inputs], 1), jnp.concatenate([a.delta, b.delta], 1))


def _join_all(a: tuple[Pair, ...] | None, b: tuple[Pair, ...]) -> tuple[Pair, ...]:
    return b if a is None else tuple(map(_join, a, b))


def _through(x: Array, inputs: Array, delta: Array) -> Array:
    """x X^T D: `[B, Q, I] -> [B, Q, O]`."""
    return jnp.einsum("bqh,bho->bqo", jnp.einsum("bqi,bhi->bqh", x, inputs), delta)


def _silence(pairs: tuple[Pair, ...], keep: Array | None) -> tuple[Pair, ...]:
    """Without the writes of those who do not keep them, whose weights then stay as they are to the bit."""
    if keep is None:
        return pairs
    return tuple(Pair(p.inputs, jnp.where(keep[:, None, None], p.delta, 0)) for p in pairs)
