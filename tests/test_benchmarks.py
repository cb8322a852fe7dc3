"""The benchmarks' own mathematics: normalised returns, interquartile means, reference densities; and ``--help``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale
from torch import nn

from torchrl_genpo import ReversibleFlowActor, VelocityMLP
from torchrl_genpo.baselines import FPOActor

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks._lib import runs as benchmark_runs
from benchmarks._lib.in_process import configure
from benchmarks.cost import table1
from benchmarks.learning import ablations, aggregate, curves, noise, tuning
from benchmarks.numerics import surrogate_bias

ROOT = Path(__file__).parents[1]
SCRIPTS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "benchmarks").glob("*/*.py"))
    if 'if __name__ == "__main__"' in path.read_text()
]


def record(task, policy, seed, final, start=10.0):
    curves = {
        "frames": [100, 200, 300],
        "train/return": [start, (start + final) / 2, final],
        "eval/zero_noise/return": [None, None, final],
        "eval/random_noise/return": [None, None, final],
    }
    origin = {"commit": "c", "versions": "v", "machine": "m"}
    return {"task": task, "policy": policy, "seed": seed, "seconds": 60.0 * seed, "curves": curves, **origin}


@pytest.fixture
def records():
    made = [record("a", "gaussian", seed, 10 + 100 * seed) for seed in (1, 2, 3)]
    made += [record("b", "gaussian", seed, 1010.0) for seed in (1, 2, 3)]
    made += [record("a", "flow", seed, 410.0) for seed in (1, 2)]
    made += [record("b", "flow", seed, 1010.0 + seed) for seed in (1, 2)]
    made += [record("a", "unfinished", 1, 999.0), record("c", "gaussian", 1, 5.0)]
    return made


def test_scores_are_zero_at_the_start_and_one_at_the_mean_of_gaussian_ppo(records):
    assert aggregate.task_sets(records) == [["a", "b"], ["a", "b", "c"]]
    scale = aggregate.scales(records, ["a", "b"], "eval/zero_noise/return")
    assert scale == {"a": (10.0, 210.0), "b": (10.0, 1010.0)}
    runs = aggregate.complete_runs(records, ["flow", "gaussian", "unfinished"], ["a", "b"])
    assert list(runs) == ["gaussian", "flow"] and len(runs["flow"]) == 2
    scores = aggregate.final_scores(runs["gaussian"], scale, "eval/zero_noise/return")
    np.testing.assert_allclose(scores, [[0.5, 1], [1, 1], [1.5, 1]])
    curves = aggregate.curves(runs["flow"], scale)
    assert curves.shape == (2, 2, aggregate.POINTS)
    np.testing.assert_allclose(curves[0, 0, [-1]], 2.0)


def test_a_run_that_was_stopped_is_not_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_runs, "ROOT", tmp_path)
    run = benchmark_runs.Run("learning", "hopper", "gaussian", (), 1, 300)
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text("collector: {total_frames: 300}")
    (run.folder / "metrics.csv").write_text("frames\n100\n200\n")
    assert not run.is_finished()
    (run.folder / "metrics.csv").write_text("frames\n100\n200\n300\n")
    assert run.is_finished()


def test_interquartile_mean_and_probability_of_improvement_on_known_numbers():
    scores = np.arange(8.0).reshape(4, 2)
    assert aggregate.iqm(scores)[0] == np.mean([2, 3, 4, 5])
    assert aggregate.improvement(np.array([[2.0], [4.0]]), np.array([[1.0], [3.0]]))[0] == 0.75
    metrics = pytest.importorskip("rliable.metrics", reason='pip install "torchrl-genpo[benchmarks]"')
    scores, base = (np.random.default_rng(seed).integers(0, 5, (size, 3)) for seed, size in enumerate((6, 4)))  # ties
    expected = metrics.probability_of_improvement(scores, base)
    assert aggregate.improvement(scores, base)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.extras("benchmarks")
def test_an_interval_depends_neither_on_the_time_nor_on_the_other_policies():
    scores = {name: np.random.default_rng(seed).normal(size=(4, 3)) for seed, name in enumerate("ab")}
    first, second = (aggregate.intervals(chosen, aggregate.iqm, 50)[1] for chosen in (scores, {"b": scores["b"]}))
    np.testing.assert_array_equal(first["b"], second["b"])


@pytest.mark.extras("benchmarks")
def test_the_report_names_what_it_leaves_out(records, tmp_path):
    labels = {"gaussian": "Gaussian", "flow": "Flow", "unfinished": "Half", "never": "Never"}
    aggregate.report(records, labels, tmp_path / "learning_iqm", {"gaussian": 1.0}, reps=50)
    text = (tmp_path / "learning_iqm.md").read_text()
    flow = next(line for line in text.splitlines() if line.startswith("| Flow"))
    # above the Gaussian's 110, 210, 310 on one task and its 1010 on the other, in every pair
    assert flow.split("|")[4].strip().startswith("1.00") and flow.split("|")[2].strip() == "2"
    assert "Left out, for no seed has finished every task: Half." in text and "Never" not in text
    wider = text[text.index("## Learning over 3 tasks: a, b, c") :]
    assert "| Gaussian | 1 |" in wider and "| Flow" not in wider and "every task: Flow, Half." in wider
    assert (tmp_path / "learning_iqm.png").stat().st_size > 5000


def test_a_task_that_gaussian_ppo_does_not_learn_is_refused():
    with pytest.raises(ValueError, match="did not learn a"):
        aggregate.scales([record("a", "gaussian", 1, 10.0)], ["a"], "eval/zero_noise/return")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself_and_does_nothing_then(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as end:  # in this process, which has imported PyTorch
        runpy.run_module(script, run_name="__main__")
    assert end.value.code == 0 and f"python -m {script}" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_scaled", [False, True])
def test_the_exact_density_of_a_pair_is_that_of_the_actor(is_scaled):
    torch.manual_seed(0)
    gaussian = nn.Sequential(nn.Linear(3, 2), AddStateIndependentNormalScale(2, init_value=-0.7))
    velocity = VelocityMLP(in_features=3, action_dim=2, num_cells=(16,))
    actor = ReversibleFlowActor(velocity, gaussian=gaussian if is_scaled else None).double()
    data = actor(TensorDict(observation=torch.randn(5, 3, dtype=torch.float64), batch_size=[5])).detach()
    exact = surrogate_bias.exact_pair(actor, data)
    torch.testing.assert_close(exact, actor.log_prob(data), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["reversible_flow", "genpo"])
def test_the_ratios_of_exact_methods_are_exact_after_a_real_update(name):
    options = [*surrogate_bias.METHODS[name][1], "collector.frames_per_batch=128", "loss.mini_batch_size=64"]
    exact, found = surrogate_bias.measure(name, [*options, "env=pendulum", "env.num_envs=4"], 1)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)
    assert exact.std() > 1e-3


def test_the_shape_of_noise_tells_a_normal_law_from_others():
    generator = torch.Generator().manual_seed(0)
    normal = 0.3 * torch.randn(200, 512, 3, generator=generator)
    found = noise.shape_of(normal, torch.full((3,), 0.5))
    assert found.pop("deviation") == pytest.approx(0.6, abs=0.01)
    assert all(abs(value) < 0.05 for value in found.values())
    side = torch.where(torch.rand(200, 512, 1, generator=generator) < 0.25, 1.0, -1.0)
    width = torch.linspace(0.5, 1.5, 200).view(-1, 1, 1)
    found = noise.shape_of(width * (side + 0.1 * normal[..., :2]), torch.ones(2))
    assert found["correlation"] > 0.95 and found["skewness"] > 1 and found["excess kurtosis"] < -0.5
    assert found["change over states"] == pytest.approx(0.29, abs=0.02)


def test_the_exact_density_of_eulers_rule_integrates_to_one():
    torch.manual_seed(0)
    velocity = VelocityMLP(in_features=3, action_dim=1, num_cells=(16,)).double()
    with torch.no_grad():
        velocity.trunk[-1].weight.mul_(50)  # the initial one hardly moves anything
    actor = FPOActor(velocity, num_steps=4)
    grid = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    observation = torch.randn(3, dtype=torch.float64).expand(len(grid), 3)
    data = TensorDict(action=grid.unsqueeze(-1), observation=observation, batch_size=[len(grid)])
    density = surrogate_bias.exact_euler(actor, data).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-6)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(grid).exp()
    assert (density - normal).abs().max() > 0.01


@pytest.mark.parametrize("method", table1.METHODS)
def test_every_method_of_the_table_of_costs_can_be_built_and_called(method):
    works, share = table1.make_size(method, "Humanoid", "cpu")
    works["collect"]()
    assert share in (1, table1.SCALED)


@pytest.fixture
def tune(monkeypatch):
    """Fills the tuning's results: a method's settings with their returns on the first and on the other seeds."""
    found = {}

    def add(method, setting, options, first, others):
        for seed in tuning.SEEDS:
            for task in tuning.TASKS:
                value = first if seed == tuning.SEEDS[0] else others
                if value is not None:
                    run = benchmark_runs.Run("tuning", task, tuning.name(method, setting), options, seed, tuning.FRAMES)
                    found[run] = record(task, run.policy, seed, value)

    monkeypatch.setattr(tuning, "read_results", lambda name: found)
    return add


def test_a_setting_is_chosen_of_all_seeds_among_the_first_seeds_best(tune):
    first = tuning.first_settings("fpo")
    tune("gaussian", tuning.BASE, (), 100.0, 200.0)
    ends = dict.fromkeys(first, 50.0) | {"target_kl_0.06": 90.0, "clip_epsilon_0.1": 70.0, "activation_tanh": 60.0}
    for setting, options in first.items():
        tune("fpo", setting, options, ends[setting], None)
    found = tuning.Tuning()
    assert found.kept("fpo") == [tuning.BASE, "target_kl_0.06", "clip_epsilon_0.1", "activation_tanh"]
    combined = ("optim.target_kl=0.06", "loss.clip_epsilon=0.1", "policy.activation=tanh")
    assert found.settings("fpo")[tuning.COMBINED] == combined
    assert found.chosen("fpo") is None  # three seeds are not there yet

    for setting, others in zip(found.kept("fpo"), (100.0, 110.0, 220.0, 100.0), strict=True):
        tune("fpo", setting, first[setting], ends[setting], others)
    assert tuning.Tuning().chosen("fpo") is None
    tune("fpo", tuning.COMBINED, combined, 95.0, 150.0)
    found = tuning.Tuning()
    assert found.chosen("fpo") == ("clip_epsilon_0.1", ("loss.clip_epsilon=0.1",))
    assert found.score("fpo", "clip_epsilon_0.1", tuning.SEEDS) == pytest.approx((70 + 220 + 220) / (100 + 200 + 200))


def test_every_method_is_tuned_by_the_same_number_of_settings_which_the_entry_script_takes():
    for method in tuning.FIRST_NOISE:
        settings = tuning.first_settings(method)
        assert len(settings) == 11
        for options in settings.values():
            configure(f"policy={method}", *options)


def test_every_policy_of_the_comparison_and_every_ablation_is_one_that_the_entry_script_takes():
    policies = curves.policies()
    tuned = policies[ablations.METHOD][1]
    options = [*(chosen for _, chosen in policies.values()), *((*tuned, *c) for _, c in ablations.ABLATIONS.values())]
    assert len(options) > 20
    for chosen in options:
        configure(*chosen)
