"""JAX's persistent compilation cache in the user's cache folder, so that a second start of a run compiles nothing."""

import os
import pathlib
import platform
import re
import tempfile
import warnings
import zlib
from typing import Any

import jax
from absl import logging

# JAX reports a failed access only by this warning; the program is then compiled, or not kept.
_FAILED = r"Error (?:reading|writing) persistent compilation cache entry for '(?P<program>[^']*)': (?P<cause>.*)"


def cache_folder() -> pathlib.Path:
    """Returns the folder of the cache: `mnm_jax/compiled/CPU` in $XDG_CACHE_HOME, by default in `~/.cache`.

    CPU is a checksum of the list of this processor's instructions: machines that share a home may differ in them.
    """
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    instructions = next((line for line in lines if re.match("flags|Features", line)), platform.processor())
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "mnm_jax" / "compiled" / f"{zlib.crc32(instructions.encode()):08x}"


def use_compilation_cache() -> None:
    """Makes JAX keep every compiled program in `cache_folder()`, or in the folder that the user has set for JAX.

    No fault of the cache ends a run: for a folder that cannot be used, and for the first failed access, one warning is
    logged, and the programs are compiled. A damaged file is deleted.
    """
    named = getattr(jax.config, "jax_compilation_cache_dir", None)  # JAX_COMPILATION_CACHE_DIR
    if named == "":  # turned off
        return
    try:
        folder = cache_folder() if named is None else pathlib.Path(named)
        if "://" not in str(named):  # JAX also accepts a bucket
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        logging.warning("compiled programs are not kept: %s", error)
        jax.config.update("jax_compilation_cache_dir", None)
        return
    _repair_after_faults(folder)
    if named is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _repair_after_faults(folder: pathlib.Path) -> None:
    """Deletes the files of a program whose access failed, and reduces JAX's warnings about such programs to one.

    JAX writes a file in place. A full disk or a kill leaves an incomplete file, which JAX neither uses nor replaces.
    """
    show = warnings.showwarning
    failures: list[re.Match[str]] = []

    def show_once(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        failed = re.match(_FAILED, str(message), re.DOTALL)
        if not failed:
            show(message, *args, **kwargs)
            return
        for path in folder.glob(f"{failed['program']}-*-cache"):
            path.unlink(missing_ok=True)
        if not failures:
            logging.warning("the cache of compiled programs, %s, failed: %s", folder, failed["cause"])
        failures.append(failed)

    warnings.filterwarnings("always", _FAILED)
    warnings.showwarning = show_once
