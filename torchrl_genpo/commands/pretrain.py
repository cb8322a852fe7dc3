# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Pre-trains a policy on demonstrations: flows by flow matching, a Gaussian by maximum likelihood.

genpo-collect robomimic/can --episodes 100 --output can.hdf5
genpo-pretrain env=robomimic/can pretrain.dataset=can.hdf5
genpo-train env=robomimic/can policy.init=<the checkpoint that it names>
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig

from torchrl_genpo.commands.common import check_device, check_rounds, hydra_command, resumed_config
from torchrl_genpo.config.command_line import as_override
from torchrl_genpo.config.compose import compose
from torchrl_genpo.config.nested import select_option
from torchrl_genpo.config.schema import PretrainOptions
from torchrl_genpo.envs import Purpose, spawn_seed
from torchrl_genpo.modules import EulerActor
from torchrl_genpo.training import DivergedError, evaluate
from torchrl_genpo.training.checkpoint import (
    SHAPING,
    build_policy,
    find_checkpoint,
    read_checkpoint,
)
from torchrl_genpo.training.pretraining import COLUMNS, pretrain
from torchrl_genpo.training.run_folder import RunFolder, read_run_config

RESUMABLE = {"pretrain.iterations", "pretrain.dataset", "env.options.dataset", "eval"}  # may change on resume
EVALUABLE = {
    "solver",
    "start",
    "euler",
    "eval",
    "env.options.dataset",
    "device",
    "num_threads",
}  # may change in an evaluation


def finetuning_options(options: PretrainOptions, path: Path) -> list[str]:
    """What ``genpo-train`` must be told to take the checkpoint; what its defaults say already is left out."""
    policy = options.policy.name if options.policy.transformer is None else "transformer_flow"
    told = [f"env={options.env.name}", *([] if policy == "reversible_flow" else [f"policy={policy}"])]
    mine, default = (chosen.model_dump(mode="json") for chosen in (options, compose(told)))
    for key in (*SHAPING, "env.options.dataset"):
        value = select_option(mine, key)
        if value != select_option(default, key):
            told.append(as_override(key, value))
    return [*told, as_override("policy.init", str(path))]


def run_evaluation(options: PretrainOptions, overrides: Sequence[str]) -> None:
    """Evaluates a checkpoint in its own environment, by another solver or start or by Euler's rule if asked for."""
    check_device(options.device)
    path = find_checkpoint(Path(str(options.evaluate)))
    checkpoint = read_checkpoint(path, options.device)
    if "pretrain" not in checkpoint["config"]:
        raise ValueError(f"{path} is of genpo-train: evaluate it by genpo-eval.")
    saved, why = checkpoint["config"] | {"device": options.device}, "A policy is evaluated as it was trained"
    own = resumed_config(saved, overrides, EVALUABLE, PretrainOptions, why)
    check_rounds(own.eval.rounds)
    torch.set_num_threads(own.num_threads)
    if options.euler and not own.policy.has_pair:
        raise ValueError(f"euler=true is of reversible flows; {path} is a policy={own.policy.name}.")
    seed = spawn_seed(own.seed, Purpose.EVALUATION)
    policy, env = build_policy(checkpoint, own, path, seed=seed)
    sampled = EulerActor.of(policy) if options.euler else policy
    for key, value in evaluate(env, sampled, seed, own.eval.rounds).items():
        print(f"{key}: {value:.3f}")


@hydra_command("pretrain", DivergedError)
def main(options: PretrainOptions, overrides: Sequence[str]) -> int:
    if options.evaluate is not None:
        run_evaluation(options, overrides)
        return 0
    path, resume = Path(HydraConfig.get().runtime.output_dir), options.resume is not None
    if resume:
        path = Path(str(options.resume))
        options = resumed_config(read_run_config(path), overrides, RESUMABLE, PretrainOptions)
    check_device(options.device)
    torch.set_num_threads(options.num_threads)
    folder = RunFolder(path, resume=resume, columns=COLUMNS)
    folder.write_config(options.model_dump(mode="json"))
    try:
        checkpoint = pretrain(options, folder)
    finally:
        folder.remove_unused()
    evaluation = folder.path / "evaluation.json"
    for way, values in json.loads(evaluation.read_text()).items() if options.eval.rounds else ():
        for key, value in values.items():
            print(f"{way} {key}: {value:.3f}")
    print(f"Run folder: {folder.path}")
    print(f"Fine-tune it: genpo-train {shlex.join(finetuning_options(options, checkpoint))}")
    return 0


if __name__ == "__main__":
    main()
