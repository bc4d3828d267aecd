"""Imports of optional packages, which an extra of this library installs."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Adds the command that installs an extra to the error of a failed import in the `with` block.

    Args:
      name: the extra, such as "train".

    Raises:
      ImportError: if a package that the block imports is not installed.

    Examples:
      >>> with extra("train"):
      ...     import a_writer_of_tensorboard_files
      Traceback (most recent call last):
      ImportError: No module named 'a_writer_of_tensorboard_files': run pip install 'mnm_jax[train]'.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.msg}: run pip install 'mnm_jax[{name}]'.", name=error.name) from error
