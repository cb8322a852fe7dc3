# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What a run shows: loggers, the learning curve, videos."""

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

from torchrl_genpo.envs import make_env, make_view, one_simulation
from torchrl_genpo.training.metrics import draw_learning_curve

__all__ = ["check_rendering", "draw_learning_curve", "make_logger", "record_video"]


def make_logger(backend: str, folder: Path, config: dict[str, Any], project: str | None, mode: str | None) -> Any:
    """The logger beside ``metrics.csv``, or ``None`` for ``csv``; a resumed run continues its own.

    Args:
        backend (str): ``csv``, ``tensorboard`` or ``wandb``.
        folder (Path): of the run.
        config (dict): of the run.
        project (str, optional): wandb's.
        mode (str, optional): wandb's, ``offline`` or ``online``.
    """
    if backend == "csv":
        return None
    run_id = hashlib.sha1(str(folder.resolve()).encode()).hexdigest()[:12]
    return get_logger(
        backend,
        logger_name=str(folder),
        experiment_name=folder.name,
        wandb_kwargs={
            "project": project,
            "mode": mode,
            "config": config,
            "id": run_id,
            "resume": "allow",
        },
    )


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
