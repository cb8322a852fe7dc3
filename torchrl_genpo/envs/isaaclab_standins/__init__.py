# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Stand-ins for Isaac Lab's robots, for machines that cannot reach its asset server."""

from torchrl_genpo.envs.isaaclab_standins.assets import write_standins

__all__ = ["write_standins"]
