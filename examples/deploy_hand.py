# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""From a policy in training to a hand that it drives, and what happens when something fails.

    python examples/deploy_hand.py

Exports a policy, lets it drive a fake XHand for three seconds, and then breaks the hand and the policy in one way after
another. The fake stands in for the maker's SDK, so that the same lines drive the real hand. Half a minute on a CPU;
writes the policy and a picture of its run to ``deploy_hand``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from torchrl_genpo.deploy import (
    ExportedPolicy,
    FakeSDK,
    FastClock,
    Fault,
    FaultyController,
    HandConfig,
    HandPolicy,
    PolicyExporter,
    XHandBackend,
    draw_session,
    run_policy,
)
from torchrl_genpo.deploy.faults import HAND_FAULTS
from torchrl_genpo.envs import freeze_normalization, make_env
from torchrl_genpo.models import make_actor

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--folder", type=Path, default=Path("deploy_hand"))
options = parser.parse_args()
torch.manual_seed(0)
torch.set_num_threads(1)

# A policy as training leaves it: the actor, and the environment with the statistics of its observations. This one has
# learned nothing; genpo-export does the same with the checkpoint of a run.
env = make_env("xhand/nut_bolt", num_envs=8, seed=0)
env.rollout(50, break_when_any_done=False)
actor = make_actor(freeze_normalization(env), hidden_sizes=(256, 128, 64))
torch.nn.init.normal_(actor.velocity.trunk[-1].weight, std=0.05)  # so that it moves

# One folder with everything inside: normaliser, history, start and the M steps of the solver.
folder = PolicyExporter(actor, env).save(options.folder)
policy = HandPolicy(ExportedPolicy(folder))
differences = policy.policy.metadata["largest_difference"]
print(f"exported to {folder}: differs from the actor by {max(differences.values()):.0e}")

# Three seconds at 20 Hz. XHandBackend(HandConfig()) without the second argument is the real hand.
sdk = FakeSDK()
report = run_policy(policy, XHandBackend(HandConfig(), sdk), seconds=3.0, log=folder / "log.csv")
draw_session(folder / "log.csv", folder / "log.png")
print(report)

# Whatever fails, the hand ends without torque. (In a time that does not wait, so that this is quick.)
for kind in ("stuck", "overheat", "error_code", "board_error", "nan_state", "nan_action", "crash"):
    fault = Fault(kind, start=0.2, joint="thumb_bend")
    clock = FastClock()
    sdk = FakeSDK([fault] if kind in HAND_FAULTS else [], clock=clock)
    controller = policy if kind in HAND_FAULTS else FaultyController(policy, fault)
    try:
        reason = run_policy(controller, XHandBackend(HandConfig(), sdk), seconds=10.0, clock=clock).reason
    except RuntimeError as error:
        reason = f"{error}, raised again"
    print(f"{kind}: {reason}. {'The hand is passive.' if sdk.hand.is_passive else 'THE HAND IS NOT PASSIVE.'}")
