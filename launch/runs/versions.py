"""Reports the commit and the versions of the packages, on which the numbers of a run depend besides its config."""

import functools
import pathlib
import platform
import subprocess

import flax
import jax
import jaxlib
import optax

import mnm_jax


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that the numbers of a run depend on."""
    packages = {module.__name__: module.__version__ for module in (jax, jaxlib, flax, optax, mnm_jax)}
    return {"python": platform.python_version()} | packages


def commit(source: str | None = None) -> str | None:
    """Returns the git commit of the source, with "-dirty" if its files differ from it; None outside a checkout.

    Args:
      source: the top folder of the checkout; None: the folder that contains `mnm_jax`. For a folder inside a checkout,
        such as that of a package installed in a user's own repository, the result is None.
    """
    folder = pathlib.Path(source or pathlib.Path(mnm_jax.__file__).parent.parent).resolve()
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or pathlib.Path(top).resolve() != folder:
        return None
    return _git(folder, "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12")


@functools.cache
def commit_at_start() -> str | None:
    """Returns `commit()` of the first call in this process, which runs the files as they were then."""
    return commit()


def _git(folder: pathlib.Path, *arguments: str) -> str | None:
    """Returns the output of a git command; None if it fails, or without git."""
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
