"""Contracts that a task of your own can be checked with."""

from mnm_jax.testing._tasks import check_task

__all__ = ["check_task"]
