"""Checks of the arguments that name bAbI data, shared by the tasks on it."""

import os
from typing import Any

from mnm_jax._checks import check_choice
from tasks.arguments import unwrap_numbers
from tasks.babi.archive import SIZES


def check_source(task: Any) -> None:
    """Checks the fields `tasks`, `size`, `data_dir` and `cache_dir` of a frozen dataclass, and sorts its `tasks`.

    Raises:
      TypeError, ValueError: a field of another type or out of range.
    """
    unwrap_numbers(task)
    if not isinstance(task.tasks, tuple | list) or not task.tasks:
        raise ValueError(f"tasks must be a tuple of task numbers such as (1, 2), got {task.tasks!r}.")
    for number in task.tasks:
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 20:
            raise ValueError(f"tasks must be numbers from 1 to 20, got {number!r} in {task.tasks!r}.")
    if len(set(task.tasks)) < len(task.tasks):
        raise ValueError(f"tasks must name each task once, got {task.tasks!r}.")
    object.__setattr__(task, "tasks", tuple(sorted(task.tasks)))
    check_choice("size", task.size, SIZES)
    for name in ("data_dir", "cache_dir"):
        if not isinstance(getattr(task, name), str | os.PathLike):
            raise TypeError(f"{name} must be the path of a folder, got {getattr(task, name)!r}.")
