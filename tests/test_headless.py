"""A machine without an OpenGL library: everything works but what draws, and that says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.extras("video")
STEP = "from torchrl_genpo.envs import make_env; print(make_env('hopper', 1, seed=0).rollout(2).shape)"
DRAW = (
    "from torchrl_genpo.config.compose import compose; from torchrl_genpo.training.recording import check_rendering; "
    "check_rendering(compose(['env=hopper']))"
)
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM")


@pytest.fixture
def without(tmp_path):
    """Runs code where a library of OpenGL cannot be loaded, because files that are none stand before it."""

    def run(library, code, **environment):
        for suffix in ("", *(f".{number}" for number in range(10))):
            (tmp_path / f"lib{library}.so{suffix}").write_text("no library")
        mine = {key: value for key, value in os.environ.items() if key not in DISPLAYS}
        mine |= {"LD_LIBRARY_PATH": str(tmp_path), **environment}
        return subprocess.run([sys.executable, "-c", code], env=mine, capture_output=True, text=True, timeout=120)

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="MuJoCo chooses between libraries on Linux alone")
@pytest.mark.parametrize(("library", "platform"), [("EGL", "egl"), ("OSMesa", "osmesa")])
def test_a_library_that_is_missing_breaks_nothing_but_drawing(without, library, platform):
    stepped = without(library, STEP, MUJOCO_GL=platform)
    assert stepped.returncode == 0 and "torch.Size([1, 2])" in stepped.stdout, stepped.stderr
    assert f"MUJOCO_GL={platform} cannot be loaded" in stepped.stderr and "apt install" in stepped.stderr
    drawn = without(library, DRAW, MUJOCO_GL=platform)
    assert drawn.returncode == 1 and "video=true needs OpenGL" in drawn.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="MuJoCo chooses between libraries on Linux alone")
def test_a_library_that_nobody_chose_is_not_chosen_where_it_is_missing(without):
    stepped = without("EGL", f"{STEP}; import os; print(os.environ.get('MUJOCO_GL'))")
    assert stepped.returncode == 0 and stepped.stdout.split()[-1] == "None", stepped.stderr
    assert "MUJOCO_GL" not in stepped.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="MuJoCo chooses between libraries on Linux alone")
@pytest.mark.parametrize(
    ("first", "task"),
    [
        ("mujoco", "hopper"),
        ("torchrl.envs", "xhand/nut_bolt"),
        ("gymnasium.envs.mujoco", "hopper"),
        ("torchrl_genpo", "xhand/nut_bolt"),
    ],
)
def test_what_is_imported_first_does_not_decide_what_can_be_drawn(tmp_path, first, task):
    mine = {key: value for key, value in os.environ.items() if key not in DISPLAYS}
    code = f"import {first}\n{DRAW.replace('hopper', task)}"
    drawn = subprocess.run([sys.executable, "-c", code], env=mine, capture_output=True, text=True, timeout=120)
    assert drawn.returncode in (0, 1), drawn.stderr
    assert drawn.returncode == 0 or "video=true needs OpenGL" in drawn.stderr, drawn.stderr
