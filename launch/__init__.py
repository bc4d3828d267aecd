"""Commands. `python -m launch.COMMAND` imports this package before the command's module."""

import importlib.util
import signal
import sys

if sys.argv[0] == "-m":
    # Ctrl-C ends the program silently while modules are imported; `run_command` restores Python's handler.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for package in ("absl", "matplotlib", "ml_collections"):
        if importlib.util.find_spec(package) is None:
            sys.exit(f"No module named {package!r}: run pip install 'mnm_jax[train]'.")
