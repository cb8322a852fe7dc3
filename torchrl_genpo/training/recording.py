# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Loggers beside ``metrics.csv``, and videos."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import gymnasium
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type
from torchrl.record.loggers import get_logger

from torchrl_genpo.config.parts import LoggerOptions
from torchrl_genpo.envs import make_env, make_view, one_simulation

__all__ = ["check_rendering", "make_logger", "record_video"]


def make_logger(options: LoggerOptions, folder: Path, config: dict[str, Any]) -> Any:
    """The logger beside ``metrics.csv``, or ``None`` for ``csv``; a resumed run continues its own.

    Args:
        options (LoggerOptions): of the run.
        folder (Path): of the run.
        config (dict): all options of the run, for wandb.
    """
    if options.backend == "csv":
        return None
    wandb = {"config": config, "resume": "allow", "id": hashlib.sha1(str(folder.resolve()).encode()).hexdigest()[:12]}
    if options.backend == "wandb":
        wandb |= {"project": options.project, "mode": options.mode}
    return get_logger(options.backend, logger_name=str(folder), experiment_name=folder.name, wandb_kwargs=wandb)


def _draw_once(name: str) -> None:
    """One picture: of the environment, where that is made at once; of an empty scene of MuJoCo's, that draws others."""
    if "/" not in name:
        env = make_env(name, 1, render=True)
        try:
            make_view(env).frame(env.reset())
        finally:
            env.close()
        return
    import mujoco

    renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16)
    renderer.render()
    renderer.close()


def check_rendering(name: str) -> None:
    """Fails now, not after the training, if a video cannot be made.

    Args:
        name (str): of the environment.

    Raises:
        ImportError: if the encoder or an OpenGL renderer is missing.
    """
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ImportError("video=true needs imageio-ffmpeg: pip install 'torchrl-genpo[video]'.")
    if one_simulation(name):  # Isaac Lab draws by itself
        return
    try:
        _draw_once(name)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"video=true: {name} cannot be drawn: {error}.") from error
    except Exception as error:  # each OpenGL platform has exceptions of its own
        raise ImportError(
            f"video=true needs OpenGL, which failed with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r} "
            f"({type(error).__name__}: {error}). Install a renderer (Debian: apt install libegl1 libgl1; or "
            "libosmesa6, and set MUJOCO_GL=osmesa), or use video=false."
        ) from error


@torch.no_grad()
def record_video(env: EnvBase, actor: TensorDictModule, path: Path, seed: int, max_steps: int = 1000) -> None:
    """Writes an mp4 of one episode of the zero-noise policy.

    Args:
        env (EnvBase): one environment made with ``render=True``.
        actor (TensorDictModule): the policy.
        path (Path): the file to write.
        seed (int): of the initial state.
        max_steps (int, optional): longest video, in steps.
    """
    import imageio

    view = make_view(env)
    env.set_seed(seed)
    td = env.reset()
    writer: Any = imageio.get_writer(path, fps=view.fps)
    with set_exploration_type(ExplorationType.DETERMINISTIC), writer as video:
        for _ in range(max_steps):
            video.append_data(view.frame(td))
            step, td = env.step_and_maybe_reset(actor(td))
            if step["next", "done"].any():
                break
