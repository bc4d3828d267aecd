"""Memories whose methods are compiled programs."""

import functools
import types

import jax


@functools.cache
def compiled(memory):
    """Returns a memory's methods, each compiled as a whole, and its gates.

    Outside of `jax.jit` each operation is a program of its own, which takes 20 ms to compile for every new shape.
    """
    methods = {name: jax.jit(getattr(memory, name)) for name in ("init", "read", "write", "write_read")}
    return types.SimpleNamespace(gates=memory.gates, start=jax.jit(memory.start, static_argnums=1), **methods)
