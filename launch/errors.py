"""A user's error ends a program in one line on stderr, without a traceback."""

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence

from absl import flags

from mnm_jax.training import Interrupted, TrainingFault

_INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with code 1, or 130 where it was interrupted. Errors of the program itself pass through."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        print(_line(error) or "interrupted.", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except (ValueError, OSError, ImportError, TrainingFault) as error:
        sys.exit(_line(error))


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parser for `absl.app.run`: an unknown flag, config key or config file, or a value of a wrong type, is one line.

    ml_collections reports these as plain exceptions of several kinds.
    """
    try:
        return flags.FLAGS(argv)
    except (LookupError, AttributeError) as error:  # ml_collections: the key quoted once or twice, and a near one
        key, *near = re.findall(r"\w+", re.sub(r"\\n|Did you mean|instead of", " ", str(error)))
        hint = f"did you mean {near[0]!r}?" if near else "the keys are those of the config file."
        sys.exit(f"unknown config key {key!r}; {hint}")
    except (flags.Error, ValueError, TypeError, OSError) as error:
        sys.exit(_line(error))


def _line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Traceback (most recent call last)" in text:  # ml_collections puts one into its message
        text = text.rstrip().rsplit("\n", 1)[-1]
    return " ".join(text.split())
