"""The training commands complete in a shell, by Hydra."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_the_name_of_a_task(tmp_path):
    command = tmp_path / "genpo-train"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m torchrl_genpo.commands.train "$@"\n')
    command.chmod(0o755)
    answer = subprocess.run(
        [
            "bash",
            "-c",
            'eval "$(genpo-train -sc install=bash)"; COMP_LINE="genpo-train env=hop"; COMP_POINT=${#COMP_LINE}; '
            'COMP_CWORD=1; hydra_bash_completion; echo "${COMPREPLY[@]}"',
        ],
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert answer.split() == ["env=hopper"]
