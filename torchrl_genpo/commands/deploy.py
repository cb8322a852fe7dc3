# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Lets a policy drive a hand, simulated or real.

genpo-deploy --policy my_policy                            # in simulation
genpo-deploy --policy my_policy --backend xhand --dry-run  # the real hand, read but not moved
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from torchrl_genpo.commands.common import add_set, explain_errors
from torchrl_genpo.deploy.controller import HandController, HandPolicy, WaveMotion
from torchrl_genpo.deploy.hand import DeployConfig, HandBackend, HandError, HandState, load_config
from torchrl_genpo.deploy.loop import run_policy
from torchrl_genpo.deploy.policy import ExportedPolicy
from torchrl_genpo.deploy.session import draw_session
from torchrl_genpo.deploy.simulated import SimulatedHand
from torchrl_genpo.deploy.xhand import XHandBackend
from torchrl_genpo.envs.xhand import JOINTS, NUTS, Randomization, Scene

__all__ = ["DryRun", "main"]

DESCRIPTION = """\
Lets a policy drive an XHand at 20 Hz, the simulated or the real one. The hand first moves slowly to the policy's start
pose. However the run ends, it ends passive, without torque; Ctrl-C stops it at any time.

Without --policy the fingers make a slow wave. A policy is a folder that genpo-export writes from a checkpoint of
env=xhand/nut_bolt:

  genpo-export outputs/.../checkpoints/checkpoint-....pt my_policy
"""

EXAMPLES = """\
examples:
  genpo-deploy                                            a wave in simulation
  genpo-deploy --policy my_policy --nut square            loosen a square nut, in real time
  genpo-deploy --set safety.max_tracking_error=0.01       see the run stopped for safety
  genpo-deploy --policy my_policy --backend xhand --dry-run
                                                          the real hand: read it, log what would be commanded
  genpo-deploy --policy my_policy --backend xhand --hand my_hand.yaml --set hand.tor_max=150

The real hand needs RobotEra's SDK (the wheel xhand_controller), which is not part of this library. Settings of a hand
are in a YAML file such as

  hand: {side: right, port: /dev/ttyUSB0, signs: {index_bend: -1}}
  safety: {max_temperature: 60}

Keep the power switch of a real hand within reach, and your fingers out of it.
"""


class DryRun:
    """A hand that is read but never commanded, a :class:`~torchrl_genpo.deploy.HandBackend`.

    Args:
        backend (HandBackend): the hand that is read.
    """

    def __init__(self, backend: HandBackend) -> None:
        self._backend = backend

    def open(self) -> None:
        """Connects to the hand."""
        self._backend.open()

    def read(self) -> HandState:
        """Reads the present state."""
        return self._backend.read()

    def command(self, position: np.ndarray) -> None:
        """Sends nothing: a dry run never moves the hand."""

    def passive(self) -> None:
        """Takes all torque from the joints, should there be any."""
        self._backend.passive()

    def close(self) -> None:
        """Disconnects from the hand."""
        self._backend.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="genpo-deploy",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--policy", type=Path, metavar="FOLDER", help="an exported policy; without one, a slow wave")
    parser.add_argument("--backend", choices=("sim", "xhand"), default="sim", help="the hand; default: sim")
    parser.add_argument("--seconds", type=float, default=20.0, help="time of the policy, after the ramp; default: 20")
    parser.add_argument("--hand", type=Path, metavar="FILE", help="YAML with the settings of the hand, see below")
    add_set(parser, "the settings of the hand, such as hand.tor_max=150")
    parser.add_argument(
        "--log", type=Path, metavar="FOLDER", help="where log.csv and log.png go; default: outputs/deploy/<date>"
    )
    parser.add_argument(
        "--nut", choices=list(NUTS), default="hexagon", help="the nut of the simulation; default: hexagon"
    )
    parser.add_argument("--dry-run", action="store_true", help="read the hand, decide and log, but never command it")
    parser.add_argument("--yes", action="store_true", help="do not ask before the real hand moves")
    return parser


def _controller(options: argparse.Namespace, config: DeployConfig) -> HandController:
    if options.policy is None:
        return WaveMotion()
    policy = HandPolicy(ExportedPolicy(options.policy))
    if policy.side != config.hand.side:
        raise ValueError(f"{options.policy} is for a {policy.side} hand, hand.side is {config.hand.side}.")
    low, high = config.safety.bounds() - policy.limits
    narrow = [name for name, is_narrow in zip(JOINTS, (low > 0.01) | (high < -0.01), strict=True) if is_narrow]
    if narrow:
        _say(f"The safety limits are narrower than those of the training, and will cut targets of {', '.join(narrow)}.")
    return policy


def _backend(options: argparse.Namespace, config: DeployConfig) -> HandBackend:
    if options.backend == "xhand":
        return XHandBackend(config.hand)
    scene = Scene.model_validate({"side": config.hand.side, "nut": options.nut})
    return SimulatedHand(scene, noise=Randomization().joint_noise)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if the run was completed or interrupted and the hand is passive."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not 0 < options.seconds < math.inf:  # before anybody is asked to stand clear
        parser.error(f"--seconds must be positive and finite, got {options.seconds:g}")
    with explain_errors(HandError):
        config = load_config(options.hand, dict(options.set))
        controller = _controller(options, config)
        backend = _backend(options, config)
        safety = config.safety
        if options.dry_run:
            backend, safety = DryRun(backend), safety.model_copy(update={"max_tracking_error": float("inf")})
        elif options.backend == "xhand" and not options.yes:
            input("The hand will move. Nothing and nobody in it? The power switch within reach? Enter starts: ")
        folder = options.log or Path("outputs", "deploy", f"{datetime.now():%Y-%m-%d_%H-%M-%S}")
        moves = "fingers make a slow wave" if options.policy is None else f"{options.policy} acts"
        _say(f"{options.backend} hand: ramp to the start pose, then the {moves} for {options.seconds:g} s.")
        report = run_policy(controller, backend, seconds=options.seconds, safety=safety, log=folder / "log.csv")
        draw_session(folder / "log.csv", folder / "log.png")
    _say(str(report))
    if isinstance(backend, SimulatedHand):
        _say(f"The nut turned {backend.turns:.2f} times.")
    _say(f"Log: {folder}")
    return 0 if report.outcome in ("completed", "interrupted") and report.is_passive else 1


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
