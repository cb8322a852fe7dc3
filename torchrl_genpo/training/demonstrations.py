# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Demonstrations of a task, for pre-training and as the anchor of fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictSequential
from torch import Tensor
from torchrl.data import LazyTensorStorage, RandomSampler, TensorDictReplayBuffer

from torchrl_genpo.config.command_line import as_word
from torchrl_genpo.config.env_options import EnvOptions, RoboMimicTaskOptions
from torchrl_genpo.config.schema import TrainOptions
from torchrl_genpo.data import make_chunk_buffer, read_demonstrations, read_env_args
from torchrl_genpo.envs import ROBOMIMIC_TASKS
from torchrl_genpo.modules import flow_of, steps

__all__ = ["Anchor", "read_task_demonstrations", "succeeded", "task_options"]


def task_options(env: EnvOptions) -> RoboMimicTaskOptions:
    """The options of a task that has demonstrations."""
    if not isinstance(env.options, RoboMimicTaskOptions):
        raise ValueError(f"There are demonstrations of robomimic/<task>, not of {env.name}.")
    return env.options


def read_task_demonstrations(env: EnvOptions, section: Any, name: str) -> list[TensorDictBase]:
    """Reads what a section of the options names.

    Args:
        env (EnvOptions): of the task.
        section (PretrainSection or AnchorOptions): names the file, and what of it is used.
        name (str): of the section.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if none is named, it is of another task, or is damaged.
    """
    chosen, dataset = task_options(env), section.dataset
    if dataset is None:
        raise ValueError(f"{name}.dataset=<file.hdf5> is missing: a robomimic file, or one of genpo-collect.")
    if not Path(dataset).is_file():
        raise FileNotFoundError(f"{name}.dataset={dataset} is missing: give the path that the file has now.")
    task = ROBOMIMIC_TASKS.get(env.name.removeprefix("robomimic/"))
    if task is None:
        raise ValueError(f"There are demonstrations of {', '.join(ROBOMIMIC_TASKS)}, not of {env.name}.")
    if chosen.dataset is None:
        recorded, mine = (args["env_name"] for args in (read_env_args(dataset), task.env_args()))
        if recorded != mine:
            raise ValueError(
                f"{dataset} is of {recorded}; {env.name} is {mine}. To train and evaluate in the environment "
                f"of the file: {as_word('env.options.dataset', dataset)}"
            )
    return read_demonstrations(
        dataset,
        chosen.observation_keys or task.observation_keys,
        filter_key=section.filter_key,
        num_demonstrations=section.num_demonstrations,
    )


class Anchor:
    """Good actions to hold on to: those of demonstrations, and of the policy's own successful episodes.

    Args:
        options (TrainOptions): of the run.
        policy (TensorDictSequential): a flow with the scale of its actions.

    Raises:
        FileNotFoundError: if the file of demonstrations is missing.
        ValueError: if it is of another task, or damaged.
    """

    def __init__(self, options: TrainOptions, policy: TensorDictSequential) -> None:
        demonstrations = read_task_demonstrations(options.env, options.anchor, "anchor")
        self._demonstrations = make_chunk_buffer(demonstrations, task_options(options.env).chunk_size)
        self._scale: Any = steps(policy)[-1]
        self._keys = ["observation", flow_of(policy).action_key]
        self._device = options.device
        self._own = TensorDictReplayBuffer(
            storage=LazyTensorStorage(max(options.anchor.own_chunks, 1), device=options.device),
            sampler=RandomSampler(),
        )
        self._keeps_own = options.anchor.own_chunks > 0

    def extend(self, data: TensorDictBase) -> None:
        """Keeps the steps of collected data ``[*envs, time]`` whose episode ended in it with success."""
        if self._keeps_own:
            good = data.select(*self._keys)[succeeded(data)]
            if len(good):
                self._own.extend(good)

    def sample(self, batch_size: int) -> TensorDictBase:
        """Draws observations and the flow's actions, half of them its own once there are any."""
        own = batch_size // 2 if len(self._own) else 0
        drawn = self._demonstrations.sample(batch_size - own).to(self._device)
        drawn = TensorDict(
            {
                self._keys[0]: drawn["observation"],
                self._keys[1]: self._scale.normalize(drawn["action"]),
                "action_is_pad": drawn["action_is_pad"],
            },
            batch_size=[batch_size - own],
        )
        if not own:
            return drawn
        mine = self._own.sample(own).select(*self._keys)
        mine["action_is_pad"] = torch.zeros_like(mine[self._keys[1]], dtype=torch.bool)
        return torch.cat([drawn, mine])

    def state_dict(self) -> dict[str, Any]:
        """The chunks of the policy's own."""
        return self._own.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the chunks of the policy's own."""
        self._own.load_state_dict(state_dict)


def succeeded(data: TensorDictBase) -> Tensor:
    """Which steps belong to an episode that ended with success within the data.

    Args:
        data (TensorDictBase): collected, ``[*envs, time]``, with ``("next", "done")`` and ``("next", "success")``.

    Returns:
        ``[*envs, time]``, boolean.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> ends, good = torch.tensor([[0, 1, 0, 1, 0]]).bool(), torch.tensor([[0, 1, 1, 0, 1]])
        >>> after = TensorDict(done=ends.unsqueeze(-1), success=good.unsqueeze(-1), batch_size=[1, 5])
        >>> succeeded(TensorDict(next=after, batch_size=[1, 5]))
        tensor([[ True,  True, False, False, False]])
    """
    done, success = (data["next", key].squeeze(-1).bool() for key in ("done", "success"))
    found = torch.zeros_like(done)
    follows = torch.zeros_like(done[..., 0])
    for time in reversed(range(done.shape[-1])):
        follows = torch.where(done[..., time], success[..., time], follows)
        found[..., time] = follows
    return found
