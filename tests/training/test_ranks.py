"""Several ranks: as if one process had done it all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.multiprocessing import start_processes

from torchrl_genpo.modules import RunningNormalizer
from torchrl_genpo.training.checkpoint import checkpoints_of
from torchrl_genpo.training.metrics import read_metrics
from torchrl_genpo.training.ranks import Ranks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SIZE = 2
STEPS = (5, 9)  # of each rank


def start(rank, port):
    torch.set_num_threads(1)
    os.environ.update(WORLD_SIZE=str(SIZE), RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    return Ranks("cpu")


def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def average(rank, port, folder):
    ranks = start(rank, port)
    torch.manual_seed(rank)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    ranks.copy_from_first(network.parameters())
    data = torch.randn(6, 3, generator=torch.Generator().manual_seed(7))[rank::SIZE]
    network(data).pow(2).mean().backward()
    ranks.average_gradients(network.parameters())
    state = [parameter.detach() for parameter in network.parameters()]
    torch.save((state, [parameter.grad for parameter in network.parameters()]), folder / f"{rank}.pt")
    assert ranks.any(rank == 1) and not ranks.any(False)
    assert ranks.mean(torch.tensor(float(rank))) == 0.5
    ranks.close()


def test_gradients_are_those_of_all_data_together(tmp_path):
    start_processes(average, (free_port(), tmp_path), nprocs=SIZE, start_method="forkserver")
    (state, gradients), (other_state, other_gradients) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(SIZE))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    network(torch.randn(6, 3, generator=torch.Generator().manual_seed(7))).pow(2).mean().backward()
    for parameter, mine, theirs, grad, other in zip(
        network.parameters(), state, other_state, gradients, other_gradients, strict=True
    ):
        assert torch.equal(mine, parameter) and torch.equal(theirs, parameter)
        torch.testing.assert_close(grad, parameter.grad)
        assert torch.equal(grad, other)


def batches_of(rank):
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(rows, 3, generator=generator) * (rank + 1) + rank for rows in (STEPS[rank], 2)]


def normalize(rank, port, folder):
    ranks = start(rank, port)
    normalizer = RunningNormalizer(3)
    for batch in batches_of(rank):
        normalizer.update(batch, ranks.sum)
    torch.save(normalizer.state_dict(), folder / f"{rank}.pt")
    ranks.close()


def test_normalization_is_that_of_all_data_together(tmp_path):
    start_processes(normalize, (free_port(), tmp_path), nprocs=SIZE, start_method="forkserver")
    merged, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(SIZE))
    together = torch.cat([batch for rank in range(SIZE) for batch in batches_of(rank)]).double()
    torch.testing.assert_close(merged["mean"], together.mean(0))
    torch.testing.assert_close(merged["deviation"], together.std(0, correction=0))
    assert merged["count"] == len(together)
    assert all(torch.equal(merged[key], other[key]) for key in merged)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks") / "run"
    return folder, torchrun(f"hydra.run.dir={folder}", "collector.total_frames=2048")


def torchrun(*overrides, env="pendulum"):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={SIZE}",
        f"--master_port={free_port()}",
    ]
    command += [str(ROOT / "sota-implementations/genpo.py"), *overrides]
    if not any(override.startswith("resume") for override in overrides):
        command += [f"env={env}", "env.num_envs=4", "collector.frames_per_batch=256", "loss.mini_batch_size=64"]
        command += ["loss.epochs=2", "eval.num_envs=2", "eval.interval=1024", "checkpoint.interval=1024"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_the_first_of_two_ranks_writes_one_run(two_ranks):
    folder, output = two_ranks
    columns = read_metrics(folder / "metrics.csv")
    assert columns["frames"] == [512, 1024, 1536, 2048], "frames are those of all ranks"
    assert max(columns["train/inversion_error"]) < 1e-4, "the ranks must share parameters and normalisation"
    assert columns["eval/zero_noise/return"][-1] == columns["eval/zero_noise/return"][-1]
    assert output.count("Run folder") == 1
    assert (folder / "learning_curve.png").exists()


def test_another_rank_leaves_no_folder_even_if_it_is_killed(tmp_path):
    """Where the folder is not given, each rank has Hydra name its own, by the second in which it starts."""
    alone = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    folder = tmp_path / "outputs" / "now"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "sota-implementations/genpo.py"), "env=pendulum", f"hydra.run.dir={folder}"],
        env=os.environ | alone | {"MASTER_PORT": str(free_port())},
    )
    deadline = time.monotonic() + 60
    while (not folder.parent.exists() or folder.exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()  # as torchrun does when the first rank has failed; this one waits for it
    process.wait()
    assert folder.parent.exists() and not folder.exists()


def test_two_ranks_resume(two_ranks):
    folder, _ = two_ranks
    torchrun(f"resume={folder}", "collector.total_frames=3072")
    assert read_metrics(folder / "metrics.csv")["frames"][-1] == 3072
    assert checkpoints_of(folder)[-1].name.endswith("3072.pt")


def test_two_ranks_train_the_hand(tmp_path):
    options = ["env.options.num_threads=1", "env.options.max_steps=20", "collector.total_frames=1024"]
    torchrun(f"hydra.run.dir={tmp_path / 'run'}", *options, env="xhand/nut_bolt")
    columns = read_metrics(tmp_path / "run" / "metrics.csv")
    assert columns["frames"] == [512, 1024]
    assert max(columns["train/inversion_error"]) < 1e-4, "the ranks must share parameters and normalisation"
