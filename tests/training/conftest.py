# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Small trainings, and one that others begin with."""

from __future__ import annotations

import pytest

from torchrl_genpo.config.compose import compose
from torchrl_genpo.training.loop import Training
from torchrl_genpo.training.ranks import Ranks
from torchrl_genpo.training.run_folder import RunFolder

SMALL = (
    *("env=pendulum", "env.num_envs=4", "collector.frames_per_batch=128", "collector.total_frames=128"),
    *(
        "loss.mini_batch_size=32",
        "loss.epochs=2",
        "eval.num_envs=1",
        "eval.interval=1_000_000",
        "policy.hidden_sizes=[8,8]",
    ),
)


@pytest.fixture
def make_training(tmp_path):
    made = []

    def make(name, *options):
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        folder = RunFolder(path, resume=any(path.glob("checkpoints/*")))
        made.append(Training(compose([*SMALL, *options]), folder, Ranks("cpu")))
        return made[-1]

    yield make
    for training in made:
        training.close()


@pytest.fixture
def begun(make_training, tmp_path):
    """The folder of a run whose policy others begin with."""
    make_training("begun", "seed=5")  # saves itself at once
    return tmp_path / "begun"
