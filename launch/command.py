"""Entry point of every command: parses flags, quiets logs, and reports a user's error as one line on stderr."""

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags, logging

from launch.compile_cache import use_compilation_cache
from launch.runs.own import place_of
from mnm_jax.training import Interrupted, TrainingFault

_FOLDERS = ("workdir", "out", "publish", "results")  # flags that name a folder or a file
_INTERRUPTED = 130  # the exit code that a shell reports for a program ended by Ctrl-C


def run_command(function: Callable[[], None], hint: str, *, cache: bool = True) -> None:
    """Parses the flags, runs `function` and exits.

    Libraries log warnings and errors only, such as JAX's warning about a GPU that it cannot use; `--verbosity=0` shows
    their informational messages as well, such as JAX's search for a TPU.

    Args:
      function: the work of the command; it reads its flags.
      hint: the end of the error message for an argument that is not a flag, such as "name the folder as --out=DIR.".
      cache: whether compiled programs are kept for the next start, unless the user gives `--nocompilation_cache`; False
        for a command that measures compilation.
    """
    if cache and "compilation_cache" not in flags.FLAGS:
        flags.DEFINE_bool("compilation_cache", True, "Keep compiled programs in the user's cache folder.")

    def main(argv: Sequence[str]) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set by launch/__init__.py
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        with one_line_errors():
            if len(argv) > 1:
                raise ValueError(f"unexpected argument {argv[1]!r}; {hint}")
            if cache and flags.FLAGS["compilation_cache"].value:
                use_compilation_cache()
            function()

    app.run(main, flags_parser=parse_flags)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line on stderr and code 1 for a user's error, 130 for an interrupt.

    Errors of the program itself pass through.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        print(_line(error) or "interrupted.", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except (ValueError, OSError, ImportError, TrainingFault) as error:
        sys.exit(_line(error) + place_of(error))


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags for `absl.app.run`; an unknown flag, key or file, or a wrong value, ends the program with one line.

    ml_collections raises plain exceptions of several kinds for these.
    """
    try:
        rest = flags.FLAGS(_joined(argv))
    except (LookupError, AttributeError) as error:
        if path := re.search(r"Attempting to lookup: ([\w.]+)", str(error)):
            sys.exit(f"--config.{path[1]}: a setting has no keys of its own; write --config.SECTION.KEY=VALUE.")
        # The message quotes the section once or twice, then a similar one.
        section, *near = re.findall(r"\w+", re.sub(r"\\n|Did you mean|instead of", " ", str(error)))
        hint = f"did you mean {near[0]!r}?" if near else "the sections are task, model and training."
        sys.exit(f"unknown config section {section!r}; {hint}")
    except (flags.Error, ValueError, TypeError, OSError) as error:
        if section := re.match(r"flag --config\.(\w+)=.* as a ConfigDict", str(error)):
            sys.exit(f"{section[1]} is a section; set one of its keys, as in --config.{section[1]}.name=NAME.")
        sys.exit(_line(error))
    for name in _FOLDERS:
        if name in flags.FLAGS and flags.FLAGS[name].value == "":  # `--workdir=$RUN` with an unset variable
            sys.exit(f"--{name} is empty; name a folder or a file.")
    return rest


def _joined(argv: Sequence[str]) -> list[str]:
    """Returns the words with `--config.KEY VALUE` as one word; ml_collections takes a setting without = for True."""
    words: list[str] = []
    for word in argv:
        if words and re.fullmatch(r"--?config\.[^=]+", words[-1]) and not re.match(r"-+[a-zA-Z]", word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _line(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Traceback (most recent call last)" in text:  # ml_collections puts one into its message
        text = text.rstrip().rsplit("\n", 1)[-1]
    return " ".join(text.split())
