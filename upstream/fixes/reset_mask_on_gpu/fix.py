# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Brings Gymnasium's mask of partial resets to the CPU."""

# ruff: noqa: F821  # names of the file that it goes into

TARGET = "torchrl/envs/libs/gym.py"


class GymWrapper:
    @implement_for("gymnasium", "1.1.0")
    def _replace_reset(self, reset, kwargs):
        import gymnasium

        mode = getattr(self._env, "autoreset_mode", None)
        if mode == gymnasium.vector.AutoresetMode.DISABLED:
            mask = reset.reshape(self.batch_size).cpu().numpy()
            kwargs["options"] = {**kwargs.get("options", {}), "reset_mask": mask}
        return kwargs
