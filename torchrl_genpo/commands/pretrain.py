# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Pre-trains a policy on demonstrations: flows by flow matching, a Gaussian by maximum likelihood.

genpo-collect can --episodes 100 --output can.hdf5
genpo-pretrain env=robomimic/can pretrain.dataset=can.hdf5
genpo-train env=robomimic/can policy.init=<the checkpoint that it names>
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig

from torchrl_genpo.commands.common import (
    check_device,
    hydra_command,
    refuse_others,
    refuse_unused,
    resumed_options,
    value_of,
)
from torchrl_genpo.config.compose import compose
from torchrl_genpo.config.schema import PretrainOptions
from torchrl_genpo.training import evaluate
from torchrl_genpo.training.build import PAIR_FLOWS
from torchrl_genpo.training.checkpoint import SHAPING, find_checkpoint, load_policy
from torchrl_genpo.training.loop import EVAL_SEED
from torchrl_genpo.training.pretraining import COLUMNS, pretrain, sampled_by_euler
from torchrl_genpo.training.run_folder import RunFolder, read_run_config

RESUMABLE = {"pretrain.iterations", "pretrain.dataset", "eval"}  # may change on resume
SAMPLING = ("solver", "start")  # options by which a trained policy may be sampled
EVALUABLE = {*SAMPLING, "euler", "eval", "device", "num_threads"}  # may change in an evaluation


def finetuning_options(options: PretrainOptions, path: Path) -> list[str]:
    """What ``genpo-train`` must be told to take the checkpoint; what its defaults say already is left out."""
    has_transformer = getattr(options.policy, "transformer", None) is not None
    policy = "transformer_flow" if has_transformer else options.policy.name
    has_file = (resources.files("torchrl_genpo.config") / "env" / f"{options.env.name}.yaml").is_file()
    env = [f"env={options.env.name}"] if has_file else ["env=robomimic/base", f"env.name={options.env.name}"]
    told = [*env, *([] if policy == "reversible_flow" else [f"policy={policy}"])]
    default = compose(told)
    for key in (*SHAPING, "env.options.dataset"):
        value = value_of(options, key)
        if value != value_of(default, key):
            told.append(f"{key}={value}".replace(" ", ""))
    return [*told, f"policy.init={path}"]


def run_evaluation(options: PretrainOptions, overrides: Sequence[str]) -> None:
    """Evaluates a checkpoint in its own environment, by another solver or start or by Euler's rule if asked for."""
    names = refuse_others(overrides, EVALUABLE, "A policy is evaluated as it was trained")
    path = find_checkpoint(Path(str(options.evaluate)))
    chosen = options.model_dump(mode="json")
    changed = {section: chosen[section] for section in SAMPLING if any(n.partition(".")[0] == section for n in names)}
    changed |= {name: value_of(options, name) for name in names if name.startswith("eval.")}
    policy, env, own = load_policy(path, None, EVAL_SEED, options.device, changed)
    if not own.eval.rounds:
        raise ValueError("eval.rounds=0 evaluates nothing; it must be at least 1 here.")
    if options.euler and own.policy.name not in PAIR_FLOWS:
        raise ValueError(f"euler=true is of reversible flows; {path} is a policy={own.policy.name}.")
    sampled = sampled_by_euler(policy) if options.euler else policy
    for key, value in evaluate(env, sampled, EVAL_SEED, own.eval.rounds).items():
        print(f"{key}: {value:.3f}")


@hydra_command("pretrain", PretrainOptions)
def main(options: PretrainOptions, overrides: Sequence[str]) -> int:
    torch.set_num_threads(options.num_threads)
    check_device(options.device)
    if options.evaluate is not None:
        run_evaluation(options, overrides)
        return 0
    path, resume = Path(HydraConfig.get().runtime.output_dir), options.resume is not None
    if resume:
        path = Path(str(options.resume))
        options = resumed_options(read_run_config(path), options, overrides, RESUMABLE)
    else:
        refuse_unused(options.policy.name, overrides)
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
