# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The training of the entry script: collection, updates, evaluation and checkpoints; the same for every policy."""

from __future__ import annotations

import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from tqdm import tqdm

from torchrl_genpo.config.checks import did_you_mean
from torchrl_genpo.configuration import as_dict, build_env, build_models
from torchrl_genpo.distributed import Ranks, SharedNormalization
from torchrl_genpo.envs import (
    WorkerError,
    close_quietly,
    copy_normalization,
    frozen_normalization,
    name_worker_failure,
    one_simulation,
)
from torchrl_genpo.loading import load_pretrained
from torchrl_genpo.recording import draw_learning_curve, make_logger
from torchrl_genpo.runs import RunFolder, StopRequest
from torchrl_genpo.training.checkpoint import Progress, load_checkpoint, make_checkpoint
from torchrl_genpo.training.collection import make_collection
from torchrl_genpo.training.evaluation import episode_log, evaluate, statistics_columns
from torchrl_genpo.training.learner import Learner
from torchrl_genpo.training.numbers import DivergedError, LastGood

__all__ = ["EVAL_SEED", "Training", "set_seeds"]

EVAL_SEED = 10_000  # apart from the training seeds
RANK_SEEDS = 1_000_003  # between the seeds of two ranks

warnings.filterwarnings("ignore", message="total_frames .* is not exactly divisible")  # explained in --help


def set_seeds(seed: int) -> None:
    """Seeds Python, NumPy and PyTorch."""
    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(seed)


class Training:
    """The parts of a run and the loop over its updates; of several ranks the first alone evaluates and writes.

    An update is all or nothing: when a number that is not finite turns up in it, parameters, optimizer and
    normalisation go back to where they were before it, and the next batch has its turn.

    Args:
        cfg (DictConfig): of the run, see ``torchrl_genpo/config/genpo.yaml``.
        folder (RunFolder): where it writes, and what it resumes.
        ranks (Ranks): the processes that train together.
    """

    def __init__(self, cfg: DictConfig, folder: RunFolder, ranks: Ranks) -> None:
        self.cfg, self.folder, self.ranks = cfg, folder, ranks
        seed = cfg.seed + RANK_SEEDS * ranks.rank
        set_seeds(seed)
        self.env = env = build_env(cfg, cfg.env.num_envs, seed)
        self.eval_env = None
        if ranks.is_first and not one_simulation(cfg.env.name):
            self.eval_env = build_env(cfg, cfg.eval.num_envs, EVAL_SEED)
        self.actor, critic, self.loss = build_models(cfg, env)
        ranks.copy_from_first(self.loss.parameters())
        if cfg.policy.get("init") and folder.resume_from is None:
            load_pretrained(cfg, env, self.actor)
        self.learner = Learner(cfg, env, self.actor, critic, self.loss, ranks)
        self.progress = Progress(max(20, cfg.env.num_envs))
        self.collection = make_collection(cfg, env, self.actor, seed, self.progress)
        self.checkpoint = make_checkpoint(
            loss=self.loss,
            env=env,
            optimizer=self.learner.optimizer,
            schedule=self.learner.schedule,
            adaptive_sigma=self.learner.adaptive_sigma,
            collection=self.collection if ranks.is_first else None,
            progress=self.progress,
        )
        columns = [*self.collection.columns, *statistics_columns(env)]
        folder.columns += [column for column in columns if column not in folder.columns]
        if (best := cfg.checkpoint.keep_best) is not None and best not in folder.columns:
            raise ValueError(f"checkpoint.keep_best={best} is no column.{did_you_mean(best, folder.columns)}")
        self._saved: tuple[int, Path] | None = None  # frames and path of the newest checkpoint
        if folder.resume_from is not None:
            load_checkpoint(self.checkpoint, folder.resume_from, cfg.device)
            self._saved = self.progress.frames, folder.resume_from
            if ranks.is_first:
                folder.truncate_metrics(self.progress.frames or -1)
        self.normalization = SharedNormalization(env, ranks)
        self.last_good = LastGood(self.loss, self.learner.optimizer, env)
        self.logger = make_logger(folder=folder.path, config=as_dict(cfg), **cfg.logger) if ranks.is_first else None
        if ranks.is_first and not self.progress.frames:
            row = {}
            if cfg.policy.get("init"):  # first, for it may remain the best
                row = {"frames": 0} | self._evaluate()
                self._log(row)
            self.save(row)  # from here on every run can be resumed

    def run(self, stop: StopRequest) -> None:
        """Trains to the last frame, or saves when it is told to stop; draws the learning curve.

        Args:
            stop (StopRequest): whether it is told to.

        Raises:
            DivergedError: after ``tolerance.undone_updates`` updates in a row that met numbers that are not finite.
            WorkerError: if a process of the environment died or hung.
        """
        cfg, progress = self.cfg, self.progress
        bar = tqdm(
            total=cfg.collector.total_frames,
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
            try:
                if self._is_due(cfg.eval.interval, frames_before):
                    row |= self._evaluate()
            finally:
                self._log(row)
            if self._is_due(cfg.eval.interval, frames_before) or self._is_due(cfg.checkpoint.interval, frames_before):
                self.save(row)  # whatever was evaluated may be the best
            bar.update(progress.frames - frames_before)
            shown = {"return": ".1f", "kl": ".3f", "lr": ".1e"}
            bar.set_postfix(
                {key: format(row[f"train/{key}"], spec) for key, spec in shown.items() if f"train/{key}" in row}
            )
        bar.close()
        if self.ranks.is_first and not self.is_finished:
            self.save()
        self.collection.close()
        if self.ranks.is_first:
            title = f"{cfg.env.name}, {cfg.policy.name}, seed {cfg.seed}"
            draw_learning_curve(self.folder.metrics_path, self.folder.path / "learning_curve.png", title)

    @property
    def is_finished(self) -> bool:
        """Whether all frames are trained."""
        return self.progress.frames >= self.cfg.collector.total_frames

    def close(self) -> None:
        """Ends collection and environments, whatever state their processes are in."""
        self.collection.close()
        for env in (self.env, self.eval_env):
            if env is not None:
                close_quietly(env)

    def save(self, row: dict[str, float] | None = None) -> Path:
        """Saves a checkpoint, once at a frame: a second one would lose ``row``, what was logged of the evaluation."""
        if self._saved is None or self._saved[0] != self.progress.frames:
            path = self.folder.save(self.checkpoint, self.progress.frames, as_dict(self.cfg), row)
            self._saved = self.progress.frames, path
        return self._saved[1]

    def _is_due(self, interval: int, frames_before: int) -> bool:
        return self.is_finished or frames_before // interval < self.progress.frames // interval

    def learn(self, data: TensorDictBase, frames_before: int) -> dict[str, float]:
        """One update from a collected batch ``[*envs, time]``; returns what is logged of it."""
        self.normalization.merge()
        row = self.learner.learn(data, frames_before) | self.collection.metrics
        self.collection.update_policy_weights_()
        if returns := self.progress.last_returns(data["next", "episode_reward"][data["next", "done"]].tolist()):
            row["train/return"] = sum(returns) / len(returns)
        return row | episode_log(data)

    def _undo(self, error: DivergedError, data: TensorDictBase, count: int) -> None:
        """Starts new episodes after a bad batch; after too many in a row keeps the batch and gives up."""
        limit = self.cfg.tolerance.undone_updates
        sys.stderr.write(f"\nUpdate undone at frame {self.progress.frames} ({count} of {limit} in a row). {error}\n")
        self.normalization = SharedNormalization(self.env, self.ranks)  # counts from what was restored
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
        """Evaluates with the present normalisation; where one simulation has to do, in the training's own."""
        if self.eval_env is not None:
            copy_normalization(self.env, self.eval_env)
            try:
                return evaluate(self.eval_env, self.actor, EVAL_SEED, self.cfg.eval.rounds)
            except Exception as error:
                failure = name_worker_failure(self.eval_env, error)
                if failure is None:
                    raise
                raise WorkerError(f"During evaluation: {failure} Saved {self.save()}") from error
        with frozen_normalization(self.env):
            results = evaluate(self.env, self.actor, EVAL_SEED)
        if not self.is_finished:
            self.collection.restart_episodes()
        return results

    def _log(self, row: dict[str, Any]) -> None:
        self.folder.log(row)
        if self.logger is not None:
            for key, value in row.items():
                self.logger.log_scalar(key, value, step=self.progress.frames)
