"""Tests the job script of launch/README.md with stand-ins for SLURM's commands."""

import pathlib
import re
import subprocess

import pytest

README = pathlib.Path(__file__).parents[2] / "launch" / "README.md"


@pytest.mark.parametrize("code", [0, 1, 130])
def test_a_job_is_queued_again_if_its_run_was_saved_after_a_signal(tmp_path, code):
    script = re.search(r"```sh\n(#!/bin/bash\n.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    for name, body in (("srun", f"exit {code}"), ("scontrol", f'echo "$@" >> {tmp_path}/scontrol.txt')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "77", "SCRATCH": str(tmp_path)}
    done = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, check=False)
    assert done.returncode == code
    called = tmp_path / "scontrol.txt"
    assert (called.read_text() if called.exists() else "") == ("requeue 77\n" if code == 130 else "")
