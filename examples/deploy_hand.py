# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""From a policy in training to a hand that it drives, and what happens when something fails.

    python examples/deploy_hand.py

Exports a policy, lets it drive the simulated XHand for three seconds, and then breaks the hand and the policy in one
way after another. It takes half a minute on a CPU, and writes the policy and a picture of its run to ``deploy_hand``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tensordict.nn import ProbabilisticTensorDictSequential

from torchrl_genpo import ReversibleFlowActor, VelocityMLP
from torchrl_genpo.deploy import (
    ExportedPolicy,
    FastClock,
    HandPolicy,
    HandState,
    PolicyExporter,
    SimulatedHand,
    draw_session,
    run_policy,
)
from torchrl_genpo.envs import make_env
from torchrl_genpo.modules import RunningNormalizer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--folder", type=Path, default=Path("deploy_hand"))
options = parser.parse_args()
torch.manual_seed(0)
torch.set_num_threads(1)

# A policy as training leaves it, with the statistics of its observations. This one has learned nothing; genpo-export
# does the same with the checkpoint of a run.
env = make_env("xhand/nut_bolt", num_envs=8, seed=0)
normalizer = RunningNormalizer(72)
normalizer.update(env.rollout(50, break_when_any_done=False)["observation"])
actor = ReversibleFlowActor(VelocityMLP(72, 8, num_cells=(256, 128, 64)), in_keys=["normalized_observation"])
torch.nn.init.normal_(actor.velocity.trunk[-1].weight, std=0.02)  # so that it moves a little

# One folder with everything inside: the normaliser, the start and the M steps of the solver.
folder = PolicyExporter(ProbabilisticTensorDictSequential(normalizer, actor), env).save(options.folder)
policy = HandPolicy(ExportedPolicy(folder))
print(f"exported to {folder}: differs from the policy by {policy.policy.metadata['largest_difference']:.0e}")

# Three seconds at 20 Hz, in a time that does not wait. XHandBackend(HandConfig()) and no clock is the real hand.
clock = FastClock()
report = run_policy(policy, SimulatedHand(clock=clock), seconds=3.0, log=folder / "log.csv", clock=clock)
draw_session(folder / "log.csv", folder / "log.png")
print(report)


class BrokenHand(SimulatedHand):
    """A hand whose readings go wrong from the thirtieth on."""

    def __init__(self, clock: FastClock, **wrong: np.ndarray) -> None:
        super().__init__(clock=clock)
        self.wrong, self.readings = wrong, 0

    def read(self) -> HandState:
        self.readings += 1
        return replace(super().read(), **(self.wrong if self.readings > 30 else {}))


class BrokenPolicy(HandPolicy):
    """A policy that decides nothing that could be done, or nothing at all."""

    def __init__(self, exported: ExportedPolicy, raises: bool) -> None:
        super().__init__(exported)
        self.raises = raises

    def act(self, position: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.raises:
            raise RuntimeError("the policy crashed")
        action, target = super().act(position, target)
        return action, np.full_like(target, np.nan)


# Whatever fails, the hand ends without torque.
hands = {
    "a motor that is too hot": {"temperature": np.full(12, 85.0)},
    "a reading that is not finite": {"position": np.full(12, np.nan)},
    "joints that do not follow": {"position": np.zeros(12)},
    "error flags": {"errors": np.ones(12, int)},
}
policies = {"a policy that gives NaN": False, "a policy that crashes": True}
for name in (*hands, *policies):
    clock = FastClock()
    hand = BrokenHand(clock, **hands.get(name, {}))
    controller = BrokenPolicy(policy.policy, policies[name]) if name in policies else policy
    try:
        reason = run_policy(controller, hand, seconds=10.0, clock=clock).reason
    except RuntimeError as error:
        reason = f"{error}, raised again"
    print(f"{name}: {reason}. {'The hand is passive.' if hand.is_passive else 'THE HAND IS NOT PASSIVE.'}")
