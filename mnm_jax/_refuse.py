"""Identities that refuse derivatives by name, for hand-written backward passes."""

from functools import partial
from typing import Any, NoReturn, TypeVar

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Array = jax.Array
Tree = TypeVar("Tree")


def reverse_only(tree: Tree, message: str) -> Tree:
    """Returns the tree. In forward mode a TypeError is raised; reverse mode, which transposes tangents, works."""
    return jax.tree.map(lambda leaf: _reverse_only(leaf, message), tree)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def constant(tree: Tree, message: str) -> Tree:
    """Returns the tree. A derivative in either mode raises a TypeError."""
    return tree


@constant.defjvp
def _constant_jvp(message: str, primals: Any, tangents: Any) -> NoReturn:
    raise TypeError(message)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _reverse_only(x: Array, message: str) -> Array:
    return x


@_reverse_only.defjvp
def _reverse_only_jvp(message: str, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return primals[0], _tangent.bind(tangents[0], message=message)


def _refuse(*_: Any, message: str) -> NoReturn:
    raise TypeError(message)


_tangent = Primitive("reverse_only_tangent")
_tangent.def_impl(_refuse)
_tangent.def_abstract_eval(lambda tangent, *, message: tangent)
ad.deflinear2(_tangent, lambda ct, *_, **__: [ct])
batching.defvectorized(_tangent)
mlir.register_lowering(_tangent, _refuse)
