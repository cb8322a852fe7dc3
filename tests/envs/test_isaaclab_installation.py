"""What is said where Isaac Lab, a package that it needs, or a robot is missing; each in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from torchrl_genpo.envs import make_env
from torchrl_genpo.envs.isaaclab import INSTALL

HAS_ISAACLAB = importlib.util.find_spec("isaaclab") is not None
needs_isaaclab = pytest.mark.skipif(not HAS_ISAACLAB, reason=f"needs Isaac Lab: {INSTALL}")


def make(arguments, before=""):
    """Makes an environment without ``ISAACSIM_ASSET_ROOT``, which Isaac Lab reads once a process."""
    code = f"{before}\nfrom torchrl_genpo.envs import make_env\nmake_env('isaaclab/ant', 1, 'cpu'{arguments})"
    environment = {key: value for key, value in os.environ.items() if key != "ISAACSIM_ASSET_ROOT"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600)


@needs_isaaclab
def test_without_a_folder_of_assets_the_robots_server_is_asked_and_named_where_it_cannot_be_reached():
    result = make("")
    assert "No module named" not in result.stderr
    if result.returncode:  # no network
        last = result.stderr.partition("\nFileNotFoundError: Unable to find the file: https://")[2]
        for message in ("NVIDIA's server", "env.options.asset_root=<folder>", "python examples/isaaclab_standins"):
            assert message in last, result.stderr


@needs_isaaclab
def test_a_package_that_isaac_lab_needs_is_named_with_the_installation():
    result = make("", before="import sys; sys.modules['omni.client'] = None")
    assert "ImportError: Isaac-Ant needs 'omni.client', and this installation of Isaac Lab lacks it" in result.stderr
    assert INSTALL in result.stderr


@needs_isaaclab
def test_a_missing_robot_is_named(tmp_path):
    result = make(f", asset_root={str(tmp_path)!r}")
    for message in (
        "FileNotFoundError",
        f"ISAACSIM_ASSET_ROOT={tmp_path}",
        "python examples/isaaclab_standins",
        "asset_root",
    ):
        assert message in result.stderr


@pytest.mark.skipif(HAS_ISAACLAB, reason="needs Isaac Lab to be absent")
def test_without_isaac_lab_the_command_that_installs_it_is_named():
    with pytest.raises(ImportError, match="pip install --no-deps --ignore-requires-python isaaclab"):
        make_env("isaaclab/ant")
