# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Draws the XHand over each nut, in the pose that an episode starts from.

    python examples/xhand_nuts.py            # writes xhand_nuts.png
    python examples/xhand_nuts.py --side left

Three nuts are trained on; triangle and cross are held out for evaluation.
"""

from __future__ import annotations

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from torchrl_genpo.envs.xhand import HELD_OUT_NUTS, NUTS, NutBoltEnv, NutBoltView, Randomization, Scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=("left", "right"), default="right")
    parser.add_argument("--output", default="xhand_nuts.png")
    options = parser.parse_args()

    figure, axes = plt.subplots(1, len(NUTS), figsize=(3 * len(NUTS), 3.6), layout="constrained")
    for axis, (name, nut) in zip(axes, NUTS.items(), strict=True):
        scene = Scene(side=options.side)
        env = NutBoltEnv(1, nuts=[name], scene=scene, randomization=Randomization.none(scene))
        view = NutBoltView(env, width=480, height=480)
        axis.imshow(view.frame(env.reset()))
        view.close()
        held_out = ", held out" if name in HELD_OUT_NUTS else ""
        axis.set_title(f"{name}, {1000 * nut.width:.0f} mm{held_out}")
        axis.axis("off")
    figure.savefig(options.output, dpi=100)
    print(f"Wrote {options.output}")


if __name__ == "__main__":
    main()
