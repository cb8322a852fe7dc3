"""Commands complete in a shell: Hydra's by Hydra, the others by a script that they print."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys

import pytest

COMMANDS = {  # module, what is typed, what it becomes
    "genpo-eval": ("torchrl_genpo.commands.evaluate", "out", "outputs"),
    "genpo-deploy": ("torchrl_genpo.commands.deploy", "--hand out", "outputs"),
    "genpo-collect": ("torchrl_genpo.commands.collect", "robomimic/ca", "robomimic/can"),
    "genpo-export": ("torchrl_genpo.commands.export", "out", "outputs"),
    "genpo-envs": ("torchrl_genpo.commands.envs", "--print", "--print-completion"),
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("command", COMMANDS)
def test_bash_completes(command, tmp_path, monkeypatch, capsys):
    module, typed, completed = COMMANDS[command]
    monkeypatch.setattr(sys, "argv", [command, "--print-completion", "bash"])  # the name that it is installed under
    with pytest.raises(SystemExit):
        importlib.import_module(module).main()
    script = capsys.readouterr().out
    (tmp_path / "completion.sh").write_text(script)
    (tmp_path / "outputs").mkdir()
    function = "_shtab_" + command.replace("-", "_")
    words = [command, *typed.split()]
    answer = subprocess.run(
        [
            "bash",
            "-c",
            f"source completion.sh; complete -p {command}; COMP_WORDS=({' '.join(words)}); "
            f'COMP_CWORD={len(words) - 1}; {function} {command} {words[-1]} {words[-2]}; echo "${{COMPREPLY[@]}}"',
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert function in answer and answer.split()[-1] == completed


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
