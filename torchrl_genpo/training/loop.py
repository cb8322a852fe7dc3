# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The training of the entry script: collection, updates, evaluation and checkpoints; the same for every policy."""

from __future__ import annotations

import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from tqdm import tqdm

from torchrl_genpo.config.checks import did_you_mean
from torchrl_genpo.config.schema import TrainOptions
from torchrl_genpo.envs import Purpose, WorkerError, close_quietly, name_worker_failure, one_simulation, spawn_seed
from torchrl_genpo.training.build import build_env, make_critic, make_loss
from torchrl_genpo.training.checkpoint import RandomState, load_pretrained, read_checkpoint, restore
from torchrl_genpo.training.collection import make_collection
from torchrl_genpo.training.evaluation import episode_log, evaluate, statistics_columns
from torchrl_genpo.training.finite import DivergedError, LastGood
from torchrl_genpo.training.learner import Learner
from torchrl_genpo.training.metrics import draw_learning_curve
from torchrl_genpo.training.policy import make_policy
from torchrl_genpo.training.progress import Progress
from torchrl_genpo.training.ranks import Ranks
from torchrl_genpo.training.recording import make_logger
from torchrl_genpo.training.run_folder import RunFolder
from torchrl_genpo.training.signals import StopRequest

__all__ = ["Training", "set_seeds"]


def _is_wrong(name: str, value: float) -> bool:
    """Says whether a result of an evaluation is infinite, or a return that is not a number."""
    return math.isinf(value) or (math.isnan(value) and name.endswith("/return"))


def set_seeds(seed: int) -> None:
    """Seeds the global states of Python, NumPy and PyTorch, each with a stream of its own."""
    random.seed(spawn_seed(seed, 0))
    np.random.seed(spawn_seed(seed, 1, bits=32))
    torch.manual_seed(spawn_seed(seed, 2))


class Training:
    """The parts of a run and the loop over its updates; of several ranks the first alone evaluates and writes.

    An update is all or nothing: when a number that is not finite turns up in it, networks, statistics and optimizer go
    back to where they were before it, and the next batch has its turn.

    Args:
        options (TrainOptions): of the run.
        folder (RunFolder): where it writes, and what it resumes.
        ranks (Ranks): the processes that train together.
    """

    def __init__(self, options: TrainOptions, folder: RunFolder, ranks: Ranks) -> None:
        self.options, self.folder, self.ranks = options, folder, ranks
        set_seeds(spawn_seed(options.seed, Purpose.LEARNING, ranks.rank))
        seed = spawn_seed(options.seed, Purpose.COLLECTION, ranks.rank)
        self._eval_seed = spawn_seed(options.seed, Purpose.EVALUATION)
        is_here = options.collector.kind == "sync"  # workers have environments of their own
        self.env = env = build_env(options, options.env.num_envs if is_here else 1, seed)
        self.eval_env = None
        if ranks.is_first and not one_simulation(options.env.name):
            self.eval_env = build_env(options, options.eval.num_envs, self._eval_seed)
        self.policy = make_policy(options, env)
        critic = make_critic(options, env, self.policy)
        if options.policy.init and folder.resume_from is None:
            load_pretrained(options, self.policy)
        self.loss = make_loss(options, self.policy, critic)  # which keeps what was loaded as its reference
        ranks.copy_from_first(self.loss.parameters())
        self.learner = Learner(options, env, self.policy, critic, self.loss, ranks)
        self.progress = Progress(max(20, options.env.num_envs))
        self.collection = make_collection(options, env, self.policy, seed, self.progress)
        columns = [*self.collection.columns, *statistics_columns(env)]
        folder.columns += [column for column in columns if column not in folder.columns]
        if (best := options.checkpoint.keep_best) is not None and best not in folder.columns:
            raise ValueError(f"checkpoint.keep_best={best} is no column.{did_you_mean(best, folder.columns)}")
        self._saved: tuple[int, Path] | None = None  # frames and path of the newest checkpoint
        if folder.resume_from is not None:
            self._resume(folder.resume_from)
        scale = self.learner.reward_scale
        self.last_good = LastGood(self.loss, self.learner.optimizer, *([] if scale is None else [scale]))
        self.logger = None
        if ranks.is_first:
            self.logger = make_logger(options.logger, folder, options.model_dump(mode="json"))
        if ranks.is_first and not self.progress.frames:
            if options.policy.init:  # first, for it may remain the best
                self._log({"frames": 0} | self._evaluate())
            self.save()  # from here on every run can be resumed

    def _resume(self, checkpoint: Path) -> None:
        """Goes on from a checkpoint, with streams of the present frame where it does not hold the old ones."""
        restore(read_checkpoint(checkpoint, self.options.device), self._parts(), checkpoint)
        frames, rank = self.progress.frames, self.ranks.rank
        self._saved = frames, checkpoint
        if self.ranks.is_first:
            self.folder.truncate_metrics(frames or -1)
        else:
            set_seeds(spawn_seed(self.options.seed, Purpose.LEARNING, rank, frames))
        if self.ranks.is_first and self.collection.parts():
            return
        self.collection.restart_episodes()
        if self.ranks.is_first:
            sys.stderr.write("The state of the simulators is not in the checkpoint: the run starts fresh episodes.\n")

    def _parts(self) -> dict[str, Any]:
        """What a checkpoint holds: with all of it a run continues exactly, where the simulator's state can be saved."""
        learner = self.learner
        parts = {"policy": self.policy, "loss": self.loss, "optimizer": learner.optimizer, "progress": self.progress}
        optional = {"schedule": learner.schedule, "reward_scale": learner.reward_scale, "anchor": learner.anchor}
        if self.ranks.is_first:
            optional |= {"random": RandomState(), **self.collection.parts()}
        return parts | {name: part for name, part in optional.items() if part is not None}

    def run(self, stop: StopRequest) -> None:
        """Trains to the last frame, or saves when it is told to stop; draws the learning curve.

        Args:
            stop (StopRequest): whether it is told to.

        Raises:
            DivergedError: after ``tolerance.undone_updates`` updates in a row that met numbers that are not finite.
            WorkerError: if a process of the environment died or hung.
        """
        options, progress = self.options, self.progress
        if self.is_finished and self.ranks.is_first:
            total = options.collector.total_frames
            sys.stderr.write(
                f"{progress.frames} frames are trained; collector.total_frames={total} asks for no more.\n"
            )
        bar = tqdm(
            total=options.collector.total_frames,
            initial=progress.frames,
            unit="frames",
            unit_scale=True,
            disable=not self.ranks.is_first,
        )
        self._start_time = time.perf_counter() - progress.seconds
        batches, undone = iter(self.collection), 0
        while not self.is_finished and not self.ranks.any(stop.received):
            frames_before = progress.frames
            self.last_good.remember()
            update_start = time.perf_counter()
            try:
                data = next(batches)
                collected = time.perf_counter()
                progress.frames += data.numel() * self.ranks.size
                row = self.learn(data, frames_before)
                undone = 0
            except DivergedError as error:
                self.last_good.restore()
                undone += 1
                self._undo(error, data, undone)
                row = {"train/undone": 1}
            except Exception as error:
                failure = str(error) if isinstance(error, WorkerError) else name_worker_failure(self.env, error)
                if failure is None:
                    raise
                self.last_good.restore()
                saved = f" Saved {self.save()}" if self.ranks.is_first else ""
                raise WorkerError(f"{failure}{saved}") from error
            progress.seconds = time.perf_counter() - self._start_time
            row |= {
                "frames": progress.frames,
                "time/seconds": round(progress.seconds, 3),
                "time/collect": round(collected - update_start, 4),
                "time/update": round(time.perf_counter() - collected, 4),
            }
            if not self.ranks.is_first:
                continue
            is_evaluated = self._is_due(options.eval.interval, frames_before)
            try:
                if is_evaluated:
                    row |= self._evaluate()
            finally:
                self._log(row)
            if is_evaluated or self._is_due(options.checkpoint.interval, frames_before):
                self.save()  # whatever was evaluated may be the best
            bar.update(progress.frames - frames_before)
            shown = {"return": ".1f", "kl": ".3f", "lr": ".1e"}
            bar.set_postfix(
                {key: format(row[f"train/{key}"], spec) for key, spec in shown.items() if f"train/{key}" in row}
            )
        bar.close()
        if self.ranks.is_first and not self.is_finished:
            self.save()
        if self.ranks.is_first and self.folder.metrics_path.exists():
            title = f"{options.env.name}, {options.policy.name}, seed {options.seed}"
            draw_learning_curve(self.folder.metrics_path, self.folder.path / "learning_curve.png", title)

    @property
    def is_finished(self) -> bool:
        """Whether all frames are trained."""
        return self.progress.frames >= self.options.collector.total_frames

    def close(self) -> None:
        """Ends collection, environments and logger, whatever state their processes are in."""
        self.collection.close()
        for env in (self.env, self.eval_env):
            if env is not None:
                close_quietly(env)
        if self.logger is not None:
            self.logger.close()  # wandb would log the next run of this process into this one

    def save(self) -> Path:
        """Saves a checkpoint, once at a frame."""
        if self._saved is None or self._saved[0] != self.progress.frames:
            path = self.folder.save(self.progress.frames, self.options.model_dump(mode="json"), self._parts())
            self._saved = self.progress.frames, path
        return self._saved[1]

    def _is_due(self, interval: int | None, frames_before: int) -> bool:
        is_passed = interval is not None and frames_before // interval < self.progress.frames // interval
        return self.is_finished or is_passed

    def learn(self, data: TensorDictBase, frames_before: int) -> dict[str, float]:
        """One update from a collected batch ``[*envs, time]``; returns what is logged of it."""
        row = self.learner.learn(data, frames_before) | self.collection.metrics
        self.collection.update_policy_weights_()
        if returns := self.progress.last_returns(data["next", "episode_reward"][data["next", "done"]].tolist()):
            row["train/return"] = sum(returns) / len(returns)
        return row | episode_log(data)

    def _undo(self, error: DivergedError, data: TensorDictBase, count: int) -> None:
        """Starts new episodes after a bad batch; after too many in a row keeps the batch and gives up."""
        limit = self.options.tolerance.undone_updates
        sys.stderr.write(f"\nUpdate undone at frame {self.progress.frames} ({count} of {limit} in a row). {error}\n")
        if count < limit:
            self.collection.update_policy_weights_()
            self.collection.restart_episodes()
            return
        message = f"{error} {count} updates in a row were undone."
        if self.ranks.is_first:
            path = self.folder.path / "bad_batch.pt"
            torch.save(data.to_dict(), path)
            message += f" The batch is in {path}; the last good state in {self.save()}."
        raise DivergedError(message) from error

    def _evaluate(self) -> dict[str, float]:
        """Evaluates the present policy; where one simulation has to do, in the training's own."""
        env, rounds = self.eval_env, self.options.eval.rounds
        if env is None:
            env, rounds = self.env, min(rounds, 1)
        try:
            results = evaluate(env, self.policy, self._eval_seed, rounds)
        except Exception as error:
            saved = self.save()  # a resumed run goes on after this evaluation
            failure = name_worker_failure(env, error)
            if failure is None:
                sys.stderr.write(f"\nThe evaluation at frame {self.progress.frames} failed. Saved {saved}\n")
                raise
            raise WorkerError(f"During evaluation: {failure} Saved {saved}") from error
        if self.eval_env is None and not self.is_finished:
            self.collection.restart_episodes()
        if infinite := [f"{name} is {value}" for name, value in results.items() if _is_wrong(name, value)]:
            sys.stderr.write(
                f"\nEvaluation at frame {self.progress.frames}: {', '.join(infinite)}, for a reward was not finite. "
                "It is logged, it cannot become the best, and training goes on.\n"
            )
        return results

    def _log(self, row: dict[str, Any]) -> None:
        self.folder.log(row)
        if self.logger is not None:
            for key, value in row.items():
                self.logger.log_scalar(key, value, step=self.progress.frames)
