# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A batch of XHands that each loosen a nut, stepped by MuJoCo's own threads."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_genpo.envs.seeds import spawn_seed
from torchrl_genpo.envs.xhand.model import make_model
from torchrl_genpo.envs.xhand.nuts import NUTS, TRAINING_NUTS, check_nut
from torchrl_genpo.envs.xhand.randomization import Randomization
from torchrl_genpo.envs.xhand.rewards import RewardWeights
from torchrl_genpo.envs.xhand.scene import JOINTS, Scene, joint_limits

__all__ = ["NutBoltEnv"]

CONTROL_PERIOD = 0.05  # s, the 20 Hz of the real hand's loop
NUT = 12  # the index of the nut's joint, after those of the hand
TURNS = 3.0  # turns after which a nut has come off
REACH = 0.07  # m, the largest distance of a finger from the nut
WINDOW = 70  # control steps after which a nut stands still
MIN_ANGLE_VARIANCE = 0.003  # rad^2, the variance of the angle over the window below which the nut stands still
OPENING = ("thumb_rota1", "index_1", "mid_1")  # joints that take the fingers off the nut
ENDS = ("reach", "stalled", "no_contact", "nut_limit", "diverged", "time_out")
METRICS = ("turns", "progress", "completion_seconds", "stalled")


class NutBoltEnv(EnvBase):
    """Simulates hands that loosen nuts, one hand in each row of the batch; the action is the joints' position targets.

    The rows take the nuts by turns. A control step is 50 ms. An episode is truncated after ``max_steps``. It is
    terminated when thumb or index finger is farther than 7 cm from the nut, when the nut has stood still or no finger
    has touched it for 70 steps, when the nut has turned 100 times, or when the simulation diverged.
    Every reset draws a new scene and compiles its model, which takes a millisecond. The fingers then open until they
    touch nothing.

    Keys: ``joint_position`` ``[num_envs, 12]``, rad; ``privileged``, for a critic (see :attr:`privileged_names`);
    ``reward`` ``[num_envs, 1]``; ``("log", "reward/<term>")``, sums over the episode, and ``("log", "end/<why>")``;
    ``("metrics", "<what>/<nut>")``: net ``turns``, ``progress`` (the part of 3 turns), ``completion_seconds`` (the time
    of 3 turns, or of the whole episode if there were fewer) and ``stalled`` (0 or 1), each NaN in rows of other nuts.
    Log and metrics are meant to be read at the end of an episode.

    Args:
        num_envs (int, optional): the batch size. Defaults to ``1``.

    Keyword Args:
        nuts (sequence of str, optional): the names of the nuts. Defaults to the three that are trained on.
        scene (Scene, optional): the scene that the randomisation starts from.
        randomization (Randomization, optional): the ranges of what is drawn.
        rewards (RewardWeights, optional): the weights of the reward.
        max_steps (int, optional): the length of an episode in control steps. Defaults to ``400``, 20 s.
        num_threads (int, optional): the threads of the simulation. Defaults to one for each processor.
        seed (int, optional): the seed of all that is drawn.

    Attributes:
        generator (torch.Generator): the generator that everything is drawn from.
        models (list of MjModel): the present model of every row.

    Raises:
        ValueError: if ``num_envs`` is not positive, a nut is unknown or none is named, or the scene's time step does
            not divide 50 ms.

    Examples:
        >>> env = NutBoltEnv(3, seed=0)
        >>> env.reset()["joint_position"].shape
        torch.Size([3, 12])
    """

    batch_locked = True

    def __init__(
        self,
        num_envs: int = 1,
        *,
        nuts: Sequence[str] = TRAINING_NUTS,
        scene: Scene | None = None,
        randomization: Randomization | None = None,
        rewards: RewardWeights | None = None,
        max_steps: int = 400,
        num_threads: int | None = None,
        seed: int | None = None,
    ) -> None:
        import mujoco
        from mujoco import rollout

        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}.")
        if not nuts:
            raise ValueError(f"nuts must name at least one of {', '.join(NUTS)}.")
        scene = Scene() if scene is None else scene
        substeps = CONTROL_PERIOD / scene.timestep
        if not (substeps < 1e4 and math.isclose(substeps, round(substeps))):
            raise ValueError(f"timestep must divide the control period of {CONTROL_PERIOD} s, got {scene.timestep} s.")
        super().__init__(device=torch.device("cpu"), batch_size=torch.Size([num_envs]))
        self.nuts = tuple(nuts)
        self.scene = scene
        self.randomization = Randomization() if randomization is None else randomization
        self.rewards = RewardWeights() if rewards is None else rewards
        self.max_steps = max_steps
        self.num_substeps = round(substeps)
        self.generator = torch.Generator()
        kinds = [check_nut(nut) for nut in self.nuts]
        self._scenes = [self.scene.model_copy(update={"nut": kinds[row % len(kinds)]}) for row in range(num_envs)]
        self._kinds = np.array([[scene.nut == nut for nut in NUTS] for scene in self._scenes])
        self._rims = np.array([NUTS[scene.nut].width / 2 for scene in self._scenes])

        self.models = [make_model(scene) for scene in self._scenes]
        largest = max(self.models, key=lambda model: model.ngeom)  # the data of this model has room for every nut
        threads = num_threads or os.cpu_count() or 1
        self._pool = rollout.Rollout(nthread=threads)
        self._data = [mujoco.MjData(largest) for _ in range(threads)]
        self._control_bits = int(mujoco.mjtState.mjSTATE_CTRL) | int(mujoco.mjtState.mjSTATE_QFRC_APPLIED)
        self._state_bits = int(mujoco.mjtState.mjSTATE_FULLPHYSICS)
        model = self.models[0]
        # positions and velocities follow the time in a state
        self._position, self._velocity = 1, 1 + model.nq
        self._sensors = {
            model.sensor(i).name: slice(model.sensor_adr[i], model.sensor_adr[i] + model.sensor_dim[i])
            for i in range(model.nsensor)
        }
        self._torques = np.array([self._sensors[f"{name}_torque"].start for name in JOINTS])

        # this is the whole state of the batch, which a checkpoint holds
        rows = (num_envs,)
        self._rows = {
            "physics": np.zeros((*rows, mujoco.mj_stateSize(model, self._state_bits))),
            "sensors": np.zeros((*rows, model.nsensordata)),
            "drawn": np.zeros((*rows, len(self.randomization.names)), np.float32),
            "start_pose": np.zeros((*rows, len(JOINTS))),
            "start_angle": np.zeros(rows),
            "angles": np.zeros((*rows, WINDOW)),
            "untouched": np.zeros(rows, np.int64),
            "steps": np.zeros(rows, np.int64),
            "completion": np.zeros(rows),
            "push": np.zeros(rows),
            "speed": np.zeros(rows),
            "terms": np.zeros((*rows, len(self.rewards.names))),
            "ends": np.zeros((*rows, len(ENDS)), bool),
        }
        self._make_specs()
        self.set_seed(seed)

    @property
    def privileged_names(self) -> list[str]:
        """The names of the numbers in ``privileged``; positions are from the nut's axis, in the world's directions."""
        fingers = ("thumb", "index", "mid")
        vectors = [f"{finger}_{quantity}" for quantity in ("position", "velocity", "force") for finger in fingers]
        return [
            *("nut_sine", "nut_cosine", "nut_speed", "nut_rise", "push"),
            *(f"{name}_{axis}" for name in vectors for axis in "xyz"),
            *(f"{joint}_position" for joint in JOINTS),
            *(f"{joint}_velocity" for joint in JOINTS),
            *(f"{joint}_torque" for joint in JOINTS),
            *("angle_variance", "untouched"),
            *(f"is_{nut}" for nut in NUTS),
            *self.randomization.names,
        ]

    def _make_specs(self) -> None:
        rows = self.batch_size
        leaf = Unbounded((*rows, 1))
        log = [f"reward/{name}" for name in self.rewards.names] + [f"end/{name}" for name in ENDS]
        metrics = [f"{name}/{nut}" for nut in dict.fromkeys(self.nuts) for name in METRICS]
        self.observation_spec = Composite(
            joint_position=Unbounded((*rows, len(JOINTS))),
            privileged=Unbounded((*rows, len(self.privileged_names))),
            log=Composite({name: leaf.clone() for name in log}, shape=rows),
            metrics=Composite({name: leaf.clone() for name in metrics}, shape=rows),
            shape=rows,
        )
        low, high = torch.as_tensor(joint_limits(self.scene.side), dtype=torch.float32)
        shape = (*rows, len(JOINTS))
        self.action_spec = Bounded(low.expand(shape), high.expand(shape), shape=shape, dtype=torch.float32)
        self.reward_spec = leaf.clone()
        flag = Binary(1, (*rows, 1), dtype=torch.bool)
        done = {name: flag.clone() for name in ("done", "terminated", "truncated")}
        self.full_done_spec = Composite(done, shape=rows)

    def _set_seed(self, seed: int | None) -> None:
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(spawn_seed(seed, 0))

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        rows = np.arange(self.batch_size[0]) if mask is None else np.flatnonzero(mask.numpy())
        draw, generator = self.randomization, self.generator
        drawn = draw.draw(len(rows), generator)
        offsets, angles = draw.draw_start(len(rows), len(JOINTS), generator)
        low, high = joint_limits(self.scene.side)
        state = self._rows
        for row, values, offset, angle in zip(rows, drawn, offsets.double().numpy(), angles.tolist(), strict=True):
            self.models[row] = make_model(draw.apply(self._scenes[row], values))
            pose = np.clip(self.scene.start_pose() + offset, low, high)
            state["physics"][row], state["sensors"][row] = self._settle(self.models[row], pose, angle)
        state["drawn"][rows] = drawn.numpy()
        state["start_pose"][rows] = state["physics"][rows, self._position : self._position + NUT]
        state["start_angle"][rows] = state["physics"][rows, self._position + NUT]
        state["angles"][rows] = np.nan  # no nut stands still before the window is full
        state["completion"][rows] = self.max_steps * CONTROL_PERIOD
        for name in ("untouched", "steps", "push", "speed", "terms", "ends"):
            state[name][rows] = 0
        flags = {name: torch.zeros(*self.batch_size, 1, dtype=torch.bool) for name in self.full_done_spec.keys()}
        return TensorDict(self._observe() | flags, self.batch_size)

    def _settle(self, model: Any, pose: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns state and sensors of a hand at rest, which opens until it touches nothing."""
        import mujoco

        data = mujoco.MjData(model)
        data.qpos[:NUT], data.qpos[NUT] = pose, angle
        opening = [JOINTS.index(name) for name in OPENING]
        for _ in range(20):
            data.ctrl[:] = data.qpos[:NUT]
            mujoco.mj_forward(model, data)
            if not data.ncon:
                break
            data.qpos[opening] -= 0.03
        state = np.empty(mujoco.mj_stateSize(model, self._state_bits))
        mujoco.mj_getState(model, data, state, self._state_bits)
        return state, data.sensordata.copy()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        state = self._rows
        before = state["physics"]
        angle_before = before[:, self._position + NUT]
        control = np.zeros((len(before), self.num_substeps, len(JOINTS) + self.models[0].nv))
        control[..., : len(JOINTS)] = tensordict["action"].double().numpy()[:, None]
        state["push"] = self._draw_pushes()
        control[..., len(JOINTS) + NUT] = state["push"][:, None]
        states, sensors = self._pool.rollout(
            self.models,
            self._data,
            before,
            control,
            control_spec=self._control_bits,
            nstep=self.num_substeps,
            initial_warmstart=np.zeros((len(before), self.models[0].nv)),  # so that no result depends on the thread
        )
        after = states[:, -1].copy()
        # MuJoCo resets a simulation that diverged, and with it its time
        diverged = ~np.isfinite(after).all(1) | (after[:, 0] < before[:, 0] + CONTROL_PERIOD / 2)
        after[diverged] = before[diverged]
        state["physics"] = after
        # MuJoCo reads its sensors at the beginning of a step, so that these are one physics step old
        state["sensors"] = np.where(diverged[:, None], state["sensors"], sensors[:, -1])
        state["steps"] += 1
        angle = after[:, self._position + NUT]
        state["speed"] = (angle - angle_before) / CONTROL_PERIOD
        state["angles"] = np.concatenate([state["angles"][:, 1:], angle[:, None]], 1)
        is_touched = np.any([self._sensor(f"{finger}_force").any(1) for finger in ("thumb", "index", "mid")], 0)
        state["untouched"] = np.where(is_touched, 0, state["untouched"] + 1)
        is_complete = self._turns() >= TURNS
        state["completion"] = np.where(
            is_complete, np.minimum(state["completion"], state["steps"] * CONTROL_PERIOD), state["completion"]
        )
        terms = np.where(diverged[:, None], 0.0, self._reward_terms())
        state["terms"] += terms
        reward, (terminated, truncated) = terms.sum(1), self._find_ends(diverged)
        flags = {"terminated": terminated, "truncated": truncated, "done": terminated | truncated}
        return TensorDict(
            self._observe() | {"reward": _column(reward)} | {name: _column(flag) for name, flag in flags.items()},
            self.batch_size,
        )

    def _draw_pushes(self) -> np.ndarray:
        """Draws the torques of the pushes on the nuts, N m."""
        draw, rows = self.randomization, self.batch_size[0]
        happens = torch.rand(rows, generator=self.generator) < draw.push_probability
        force = draw.push_force * torch.randn(rows, generator=self.generator) * happens
        return force.double().numpy() * self._rows["drawn"][:, draw.names.index("nut_mass")] * self._rims

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Ends the simulation's threads."""
        self._pool.close()
        super().close(raise_if_closed=raise_if_closed)

    def data(self, row: int) -> Any:
        """Returns the present state of one hand as ``MjData``, for drawing."""
        import mujoco

        data = mujoco.MjData(self.models[row])
        mujoco.mj_setState(self.models[row], data, self._rows["physics"][row], self._state_bits)
        mujoco.mj_forward(self.models[row], data)
        return data

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns all that the next steps depend on, so that a restored environment continues to the last bit."""
        rows = {name: torch.from_numpy(value.copy()) for name, value in self._rows.items()}
        return rows | {"generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Restores what :meth:`state_dict` returned, models included."""
        self._rows = {name: state_dict[name].cpu().numpy().copy() for name in self._rows}
        self.generator.set_state(state_dict["generator"].cpu().clone())
        for row, drawn in enumerate(torch.from_numpy(self._rows["drawn"])):
            self.models[row] = make_model(self.randomization.apply(self._scenes[row], drawn))

    def _sensor(self, name: str) -> np.ndarray:
        return self._rows["sensors"][:, self._sensors[name]]

    def _turns(self) -> np.ndarray:
        return (self._rows["physics"][:, self._position + NUT] - self._rows["start_angle"]) / (2 * math.pi)

    def _distances(self) -> np.ndarray:
        """Computes the distances of thumb and index finger to the nut, ``[num_envs, 2]``, m."""
        nut = self._sensor("nut_position")
        return np.stack([np.linalg.norm(self._sensor(f"{f}_position") - nut, axis=1) for f in ("thumb", "index")], 1)

    def _reward_terms(self) -> np.ndarray:
        state = self._rows
        return self.rewards.terms(
            speed=state["speed"],
            pose=state["physics"][:, self._position : self._position + NUT] - state["start_pose"],
            torque=state["sensors"][:, self._torques],
            velocity=state["physics"][:, self._velocity : self._velocity + NUT],
            closeness=1.0 - self._distances().mean(1) / REACH,
        )

    def _find_ends(self, diverged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Says which episodes are terminated and which truncated, and remembers why."""
        state = self._rows
        ends = {
            "reach": (self._distances() > REACH).any(1),
            "stalled": state["angles"].var(1) < MIN_ANGLE_VARIANCE,  # false while there is a NaN
            "no_contact": state["untouched"] >= WINDOW,
            "nut_limit": np.abs(self._turns()) >= 100,
            "diverged": diverged,
        }
        terminated = np.any(list(ends.values()), 0)
        ends["time_out"] = ~terminated & (state["steps"] >= self.max_steps)
        state["ends"] = np.stack([ends[name] for name in ENDS], 1)
        return terminated, ends["time_out"]

    def _observe(self) -> dict[str, Any]:
        state = self._rows
        position, velocity = (state["physics"][:, start : start + NUT] for start in (self._position, self._velocity))
        angle, nut = state["physics"][:, self._position + NUT], self._sensor("nut_position")
        rise = nut[:, 2] - self.scene.nut_height
        vectors = [self._sensor(f"{f}_position") - nut for f in ("thumb", "index", "mid")]
        vectors += [self._sensor(f"{f}_{what}") for what in ("velocity", "force") for f in ("thumb", "index", "mid")]
        privileged = [
            np.stack([np.sin(angle), np.cos(angle), state["speed"], rise, state["push"]], 1),
            *(*vectors, position, velocity, state["sensors"][:, self._torques]),
            np.stack([np.nan_to_num(state["angles"].var(1), nan=1.0).clip(max=1.0), state["untouched"]], 1),
            *(self._kinds, state["drawn"]),
        ]
        log = dict(zip(self.rewards.names, state["terms"].T, strict=True))
        ends = dict(zip(ENDS, state["ends"].T, strict=True))
        turns = self._turns()
        metrics = {
            "turns": turns,
            "progress": np.clip(turns / TURNS, 0.0, 1.0),
            "completion_seconds": state["completion"],
            "stalled": ends["stalled"] | ends["no_contact"],
        }
        return {
            "joint_position": torch.from_numpy(position.astype(np.float32)),
            "privileged": torch.from_numpy(np.concatenate(privileged, 1).astype(np.float32)),
            "log": TensorDict(
                {f"reward/{name}": _column(value) for name, value in log.items()}
                | {f"end/{name}": _column(value.astype(np.float32)) for name, value in ends.items()},
                self.batch_size,
            ),
            "metrics": TensorDict(
                {
                    f"{name}/{nut}": _column(np.where(self._kinds[:, list(NUTS).index(nut)], value, np.nan))
                    for nut in dict.fromkeys(self.nuts)
                    for name, value in metrics.items()
                },
                self.batch_size,
            ),
        }


def _column(values: np.ndarray) -> Tensor:
    """Turns ``[n]`` numbers or flags into a tensor ``[n, 1]``, numbers in single precision."""
    return torch.from_numpy(values if values.dtype == bool else values.astype(np.float32)).unsqueeze(-1)
