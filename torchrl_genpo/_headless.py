# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Lets MuJoCo draw with EGL where there is no display, and be imported where nothing can draw.

TorchRL imports MuJoCo, which loads the OpenGL library that ``MUJOCO_GL`` names and fails without it.
"""

import ctypes.util
import importlib
import importlib.util
import os
import sys
import warnings

PLATFORMS = {"egl": "OpenGL.EGL", "osmesa": "OpenGL.osmesa"}  # the modules that load the libraries


def _why_not(platform: str) -> str | None:
    """Says why PyOpenGL cannot load the library of a platform; ``None`` if it can."""
    environment = os.environ.get("PYOPENGL_PLATFORM")
    os.environ["PYOPENGL_PLATFORM"] = environment or platform
    try:
        importlib.import_module("OpenGL.GL")
        importlib.import_module(PLATFORMS[platform])
    except Exception as error:  # each platform has exceptions of its own
        for name in [name for name in sys.modules if name.partition(".")[0] == "OpenGL"]:
            del sys.modules[name]  # it keeps the platform that it first tried
        os.environ.pop("PYOPENGL_PLATFORM")
        if environment is not None:
            os.environ["PYOPENGL_PLATFORM"] = environment
        return f"{type(error).__name__}: {error}"
    return None


def _choose_platform() -> None:
    if sys.platform != "linux" or importlib.util.find_spec("mujoco") is None:
        return
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if not chosen and not has_display and ctypes.util.find_library("EGL") and _why_not("egl") is None:
        os.environ["MUJOCO_GL"] = "egl"
        # MuJoCo, where it was imported before, has chosen a platform that needs a display
        for name in ("mujoco.rendering.classic.gl_context", "mujoco.gl_context"):
            if name in sys.modules:
                importlib.reload(sys.modules[name])
    elif chosen in PLATFORMS and "mujoco" not in sys.modules and (reason := _why_not(chosen)) is not None:
        os.environ["MUJOCO_GL"] = "disabled"
        warnings.warn(
            f"MUJOCO_GL={chosen} cannot be loaded ({reason}); nothing will be drawn. Install it (Debian: apt install "
            f"{'libegl1 libgl1' if chosen == 'egl' else 'libosmesa6'}), or unset MUJOCO_GL.",
            stacklevel=2,
        )


_choose_platform()
