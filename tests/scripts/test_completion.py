"""Commands complete in a shell: Hydra's by Hydra, the others by a script that they print."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

COMMANDS = {  # module, what is typed, what it becomes
    "genpo-report": ("torchrl_genpo.commands.report", "--out", "--output"),
    "genpo-eval": ("torchrl_genpo.commands.evaluate", "--print", "--print-completion"),
    "genpo-deploy": ("torchrl_genpo.deploy.run", "--dry", "--dry-run"),
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("command", COMMANDS)
def test_bash_completes_an_option(command, tmp_path):
    module, typed, completed = COMMANDS[command]
    # by the name that it is installed under
    code = f"import sys; sys.argv = [{command!r}, '--print-completion', 'bash']; from {module} import main; main()"
    script = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    (tmp_path / "completion.sh").write_text(script)
    function = "_shtab_" + command.replace("-", "_")
    answer = subprocess.run(
        [
            "bash",
            "-c",
            f"source completion.sh; complete -p {command}; COMP_WORDS=({command} {typed}); COMP_CWORD=1; "
            f'{function} {command} {typed} {command}; echo "${{COMPREPLY[@]}}"',
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert function in answer and answer.split()[-1] == completed


def test_hydra_completes_the_name_of_a_task():
    result = subprocess.run(
        [sys.executable, "-m", "torchrl_genpo.commands.train", "-sc", "query=bash"],
        env=os.environ | {"COMP_LINE": "genpo-train env=hop"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "env=hopper" in result.stdout.split()
