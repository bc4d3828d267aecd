"""Tests how a command starts: Ctrl-C during its imports, packages that are not installed, empty names of folders."""

import signal
import subprocess
import sys

import pytest

from launch.command import run_command

AS_COMMAND = "import importlib.util, os, signal, sys; sys.argv[0] = '-m'; "  # as in `python -m launch.COMMAND`


def python(code):
    return subprocess.run([sys.executable, "-c", AS_COMMAND + code], capture_output=True, text=True, check=False)


def test_ctrl_c_during_imports_ends_without_a_traceback():
    # A program that a shell starts in the background inherits that SIGINT is ignored.
    foreground = "signal.signal(signal.SIGINT, signal.default_int_handler); "
    done = python(foreground + "import launch; os.kill(os.getpid(), signal.SIGINT); print('still here')")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_command_without_its_packages_names_the_extra():
    done = python("importlib.util.find_spec = lambda name: None; import launch")
    assert done.returncode == 1
    assert done.stderr == "No module named 'absl': run pip install 'mnm_jax[train]'.\n"


def test_an_empty_folder_is_refused():
    """`--workdir=$RUN` with an unset variable would write a run into the current folder."""
    command = [sys.executable, "-m", "launch.train", "--config=launch/configs/pairs.py", "--workdir="]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "--workdir is empty; name a folder or a file.\n"


def test_ctrl_c_is_an_exception_again_when_the_work_begins(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command"])
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)

    def work():
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        raise KeyboardInterrupt

    try:
        with pytest.raises(SystemExit) as end:
            run_command(work, "no arguments.")
    finally:
        signal.signal(signal.SIGINT, before)
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted.\n"
