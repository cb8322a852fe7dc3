# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Stand-ins for Isaac Lab's robots, for machines that cannot reach its asset server.

    python -m torchrl_genpo.envs.isaaclab_standins FOLDER
    ISAACSIM_ASSET_ROOT=FOLDER python sota-implementations/genpo.py env=isaaclab/anymal_d_rough

Isaac Lab loads its robots from a server. This writes a folder with the same layout, so that its task configurations
run untouched: a ground, the ant and the humanoid that come with Newton, and robots of boxes and spheres with Isaac's
names of bodies and joints. **They test the plumbing, not the results**: masses, sizes and limits are rough, and a
policy trained on one says nothing about the robot. With Isaac's own assets the same command trains the real one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torchrl_genpo.envs.isaaclab_standins import write_standins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; the ISAACSIM_ASSET_ROOT to use")
    root = write_standins(parser.parse_args().folder)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    print(f"ISAACSIM_ASSET_ROOT={root.resolve()}", *files, sep="\n  ")  # noqa: T201


if __name__ == "__main__":
    main()
