"""The examples run as they are written, and show what they claim."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from torchrl_genpo.config.compose import compose
from torchrl_genpo.envs.xhand import NUTS
from torchrl_genpo.training.recording import check_rendering

sys.path.append(str(Path(__file__).parent))
from forks import run_script

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run(tmp_path, example, *options):
    output = tmp_path / "output.txt"
    code, _ = run_script(ROOT / "examples" / example, options, output)
    assert code == 0, output.read_text()
    return output.read_text()


def test_a_flow_tries_all_four_places_where_a_gaussian_cannot(tmp_path):
    output = run(tmp_path, "multimodal.py")
    shares = {
        line.split(":")[0]: [int(share) for share in re.findall(r"(\d+) %", line)]
        for line in output.splitlines()
        if "%" in line
    }
    assert min(shares["flow"]) >= 12 and sum(shares["flow"]) >= 75, shares
    assert sum(sorted(shares["Gaussian"])[:2]) <= 10, shares
    assert (tmp_path / "multimodal.png").stat().st_size > 10_000


def test_a_reference_keeps_the_goals_that_were_pretrained_while_fine_tuning_runs(tmp_path):
    output = run(tmp_path, "finetune_with_reference.py", "--frames", 8 * 2048, "--pretrain-iterations", 1500)
    entropy = {way.strip(): float(value) for way, value in re.findall(r"^(.+): return .* ([\d.]+)$", output, re.M)}
    assert list(entropy) == ["pre-trained", "freely", "near itself", "steered"]
    assert min(entropy["pre-trained"], entropy["near itself"]) > 1.2, output


def test_compose_balances_the_pendulum(tmp_path):
    output = run(tmp_path, "compose.py", "--frames", 12 * 2048)
    (value,) = re.findall(r"zero noise: return (\d+)", output)
    assert int(value) >= 900, output


def test_the_trainer_balances_the_pendulum_and_logs_the_numerical_error_of_the_inversion(tmp_path):
    output = run(tmp_path, "trainer.py", "--frames", 24 * 2048)
    (value,) = re.findall(r"zero noise: return (\d+)", output)
    assert int(value) >= 500, output
    rows = (tmp_path / "csv_logs" / "trainer" / "scalars" / "inversion_error.csv").read_text().split()
    assert rows and all(float(row.split(",")[1]) < 1e-4 for row in rows)


def test_a_memory_finds_the_goal_that_was_shown_once_and_none_cannot(tmp_path):
    ends = {}
    for memory, frames in (("gru", 40 * 1280), ("none", 20 * 1280)):
        output = run(tmp_path, "recurrent.py", "--memory", memory, "--frames", frames)
        ends[memory] = float(re.findall(r"zero noise: (\S+) away", output)[0])
    assert ends["gru"] < 0.3 and ends["none"] > 0.6, ends


def test_pixels_are_enough_to_reach_the_goal(tmp_path):
    output = run(tmp_path, "pixels.py", "--frames", 20 * 1024)
    ((reached, by_chance),) = re.findall(r"zero noise: (\d+) % .* random actions: (\d+) %", output)
    assert int(reached) >= 60 and int(by_chance) <= 10, output
    assert (tmp_path / "pixels.png").stat().st_size > 10_000


def test_agents_that_share_a_flow_learn_to_follow_the_one_that_sees_the_goal(tmp_path):
    output = run(tmp_path, "multi_agent.py", "--frames", 40 * 1024)
    ((met, by_chance),) = re.findall(r"zero noise: (\d+) % .* random actions: (\d+) %", output)
    assert int(met) >= 80 and int(by_chance) <= 5, output


def test_a_flow_beside_a_categorical_head_learns_to_steer_and_to_shift(tmp_path):
    output = run(tmp_path, "hybrid.py", "--frames", 40 * 1024)
    ((reached, by_chance),) = re.findall(r"zero noise: (\d+) % .* random actions: (\d+) %", output)
    assert int(reached) >= 80 and int(by_chance) <= 10, output


def test_finetuning_a_pretrained_flow_moves_it_to_the_rewarded_modes(tmp_path):
    short = ["--pretrain-iterations", "800", "--finetune-iterations", "15"]
    output = run(tmp_path, "pretrain_then_finetune.py", *short)
    distance = {name: float(value) for name, value in re.findall(r"(.*): energy distance to the data (\S+)", output)}
    assert distance["consistent start"] < 0.5 * distance["Euler"] < distance["paper's start"]
    (before,) = re.findall(r"(\d+) % before", output)
    freely, near = (int(share) for share in re.findall(r"fine-tuned.*: (\d+) %", output))
    assert int(before) < 50 < near < freely and freely > 75, output
    assert (tmp_path / "pretrain_then_finetune.png").stat().st_size > 10_000


@pytest.mark.extras("deploy")
def test_deploying_to_a_hand_ends_passive_whatever_fails(tmp_path):
    output = run(tmp_path, "deploy_hand.py")
    (difference,) = re.findall(r"differs from the policy by (\S+)", output)
    assert float(difference) < 1e-5 and "completed after 3.0 s" in output
    assert output.count("The hand is passive.") == 7 and "NOT" not in output, output
    assert (tmp_path / "deploy_hand" / "log.png").stat().st_size > 10_000


def test_the_picture_of_the_hand_shows_five_nuts_in_their_colours(tmp_path):
    try:
        check_rendering(compose(["env=xhand/nut_bolt"]))
    except ImportError as error:
        pytest.skip(str(error))
    run(tmp_path, "xhand_nuts.py")
    picture = plt.imread(tmp_path / "xhand_nuts.png")[..., :3]
    panels = [panel.reshape(-1, 3) for panel in np.array_split(picture, 5, axis=1)]
    for nut, panel in zip(NUTS.values(), panels, strict=True):
        # coloured pixels, as those of a nut in shade and light are multiples of its colour
        colored = panel[np.ptp(panel, axis=1) > 0.3]
        cosine = colored @ nut.rgb / np.linalg.norm(colored, axis=1) / np.linalg.norm(nut.rgb)
        assert len(colored) > 200 and np.median(cosine) > 0.95, nut


EXAMPLES = [*sorted((ROOT / "examples").glob("*.py")), ROOT / "examples" / "isaaclab_standins"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_explain_themselves(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(example), "--help"])
    with pytest.raises(SystemExit) as end:  # in this process, which has imported PyTorch
        runpy.run_path(str(example), run_name="__main__")
    assert end.value.code == 0 and f"python examples/{example.name}" in capsys.readouterr().out
