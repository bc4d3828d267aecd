"""Contracts that run on a task of one's own."""

from mnm_jax.testing._tasks import check_task

__all__ = ["check_task"]
