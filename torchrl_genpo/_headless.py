# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Lets MuJoCo draw with EGL where there is no display. It reads this when it is imported, as TorchRL does."""

import ctypes.util
import os
import sys

if (
    sys.platform == "linux"
    and not any(os.environ.get(name) for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"))
    and ctypes.util.find_library("EGL")
):
    os.environ["MUJOCO_GL"] = "egl"
