# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Loggers beside ``metrics.csv``, and videos."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type
from torchrl.record.loggers import get_logger

from torchrl_genpo.config.parts import LoggerOptions
from torchrl_genpo.config.schema import PretrainOptions, TrainOptions
from torchrl_genpo.envs import make_view, one_simulation
from torchrl_genpo.training.build import build_env
from torchrl_genpo.training.run_folder import RunFolder

__all__ = ["check_logger", "check_rendering", "make_logger", "record_video"]


def check_logger(options: LoggerOptions) -> None:
    """Fails now, not after the environments are made, if a logger cannot be used.

    Where a terminal can answer, wandb asks for the key that it lacks.

    Raises:
        ImportError: if the logger's package is missing.
        ValueError: if wandb is to send a run and has no key of an account.
    """
    if options.backend == "csv":
        return
    if importlib.util.find_spec(options.backend) is None:
        name = options.backend
        raise ImportError(f"logger={name} needs the package {name}: pip install 'torchrl-genpo[{name}]'.")
    if options.mode == "online":
        import wandb

        try:
            wandb.login(verify=False)
        except wandb.errors.Error as error:
            raise ValueError(
                f"logger.mode=online: wandb has no key of an account ({str(error).rstrip('.')}). Run wandb login, or "
                "set WANDB_API_KEY, or keep the run on this machine with logger.mode=offline."
            ) from error


def make_logger(options: LoggerOptions, folder: RunFolder, config: dict[str, Any]) -> Any:
    """The logger beside ``metrics.csv``, or ``None`` for ``csv``; a resumed run continues its own.

    Args:
        options (LoggerOptions): of the run.
        folder (RunFolder): of the run, which keeps the id of a run at wandb.
        config (dict): all options of the run, for wandb.
    """
    if options.backend == "csv":
        return None
    wandb: dict[str, Any] = {}
    if options.backend == "wandb":
        wandb = {"config": config, "resume": "allow", "id": folder.run_id}
        wandb |= {"project": options.project, "mode": options.mode}
    path = folder.path
    return get_logger(options.backend, logger_name=str(path), experiment_name=path.name, wandb_kwargs=wandb)


DRAW_NOTHING = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 16, 16).render()"


def _opengl_failure() -> str | None:
    """Draws an empty scene of MuJoCo's, in another process because MuJoCo may abort it, and says what failed."""
    drawn = subprocess.run([sys.executable, "-c", DRAW_NOTHING], capture_output=True, text=True)
    if drawn.returncode == 0:
        return None
    return (drawn.stderr.strip().splitlines() or [f"exit code {drawn.returncode}"])[-1]


def check_rendering(options: TrainOptions | PretrainOptions) -> None:
    """Fails now, not after the training, if a video cannot be made: draws the task once.

    Args:
        options (TrainOptions or PretrainOptions): of the run.

    Raises:
        ImportError: if the encoder or an OpenGL renderer is missing.
        ValueError: if the task cannot be drawn.
    """
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ImportError("video=true needs imageio-ffmpeg: pip install 'torchrl-genpo[video]'.")
    name = options.env.name
    if one_simulation(name):  # Isaac Lab draws by itself
        return
    is_made = False
    try:
        env = build_env(options, 1, seed=0, render=True)
        is_made = True
        try:
            frame = make_view(env).frame(env.reset())
        finally:
            env.close()
    except Exception as error:  # a task may raise anything
        what = f"video=true: {name} cannot be drawn ({type(error).__name__}: {error})."
        failure = _opengl_failure()
        if failure is None and not is_made and isinstance(error, (ValueError, OSError, ImportError)):
            raise  # it is not the drawing that fails
        if failure is None or isinstance(error, gymnasium.error.DependencyNotInstalled):
            raise ValueError(f"{what} Use video=false, or mend what it says.") from error
        raise ImportError(
            f"{what} video=true needs OpenGL, which failed with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r} "
            f"({failure}). Install a renderer (Debian: apt install libegl1 libgl1; or libosmesa6, and set "
            "MUJOCO_GL=osmesa), or use video=false."
        ) from error
    if getattr(frame, "ndim", 0) != 3:
        raise ValueError(f"video=true: {name} draws no pictures [height, width, 3]; use video=false.")


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
