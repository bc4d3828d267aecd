"""An identity that refuses forward-mode derivatives by name: the hand-written backward passes are reverse-mode only."""

from typing import Any, NoReturn

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Array = jax.Array


@jax.custom_jvp
def reverse_only(x: Array) -> Array:
    """Returns x. Evaluating its tangent raises a TypeError; reverse mode, which only transposes the tangent, works."""
    return x


@reverse_only.defjvp
def _reverse_only_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return primals[0], _tangent.bind(tangents[0])


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise TypeError(
        "the forms 'reversible' and 'factored' have no forward-mode derivatives (jax.jvp, jax.jacfwd, jax.linearize); "
        "use unroll(..., form='plain'), or take the derivative in reverse mode."
    )


_tangent = Primitive("reverse_only_tangent")
_tangent.def_impl(_refuse)
_tangent.def_abstract_eval(lambda tangent: tangent)
ad.deflinear2(_tangent, lambda ct, _: [ct])
batching.defvectorized(_tangent)
mlir.register_lowering(_tangent, _refuse)
