# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Lists the environments that have a configuration, and what to install for those that are missing.

genpo-envs
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
from importlib import resources
from typing import NamedTuple

from torchrl_genpo.commands.completion import add_completion
from torchrl_genpo.data.robomimic import INSTALL as ROBOMIMIC_INSTALL
from torchrl_genpo.envs.isaaclab import INSTALL as ISAACLAB_INSTALL

__all__ = ["main"]


class Family(NamedTuple):
    """Describes the environments of one simulator."""

    title: str
    folder: str  # in torchrl_genpo/config/env
    package: str
    install: str
    more: str = ""


FAMILIES = (
    Family("Gymnasium", "", "gymnasium", "pip install 'gymnasium[mujoco]'", "env.name=<any Gymnasium id>"),
    Family("XHand", "xhand", "mujoco", "pip install mujoco"),
    Family("RoboMimic", "robomimic", "robosuite", ROBOMIMIC_INSTALL, "env.name=robomimic/<robosuite's name of a task>"),
    Family(
        "Isaac Lab",
        "isaaclab",
        "isaaclab",
        ISAACLAB_INSTALL,
        "env=isaaclab/base env.name=isaaclab/<id of a manager-based task>",
    ),
)


def names(family: Family) -> list[str]:
    """Lists the names that ``env=`` takes of a family."""
    folder = resources.files("torchrl_genpo.config") / "env" / family.folder
    stems = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    return [f"{family.folder}/{stem}".lstrip("/") for stem in stems if stem != "base"]


def main() -> None:
    """Prints the families with their environments, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_completion(parser)
    parser.parse_args()
    for family in FAMILIES:
        if importlib.util.find_spec(family.package) is None:
            state = f"not installed; {family.install}"
        else:
            state = f"{family.package} {importlib.metadata.version(family.package)}"
        print(f"{family.title} ({state})")
        for name in names(family):
            print(f"  env={name}")
        if family.more:
            print(f"  {family.more}")


if __name__ == "__main__":
    main()
