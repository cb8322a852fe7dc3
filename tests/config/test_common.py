"""What commands share: options from a command line, messages for mistakes, and runs that are continued."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from torchrl_genpo.commands.common import (
    check_device,
    check_rounds,
    explain_errors,
    refuse_others,
    refuse_unused,
    resumed_config,
)
from torchrl_genpo.config.compose import compose
from torchrl_genpo.config.schema import PretrainOptions
from torchrl_genpo.training.checkpoint import saved_options

sys.path.append(str(Path(__file__).parents[1]))
from forks import run_script

COMMAND = """
from pathlib import Path
from hydra.core.hydra_config import HydraConfig
from torchrl_genpo.commands.common import hydra_command, resumed_config

@hydra_command("genpo")
def main(options, overrides):
    folder = Path(HydraConfig.get().runtime.output_dir)
    if options.resume:
        assert not folder.exists()
        saved = {"seed": 4, "env": {"name": "isaaclab/ant"}, "collector": {"frames_per_batch": 4096}}
        options = resumed_config(saved, overrides, {"env.options.asset_root", "logger"})
        print(options.seed, options.env.options.asset_root, options.logger.backend)
        return 3
    print(f"{options.env.name} has {options.collector.frames_per_batch} frames; {overrides}")

main()
"""


@pytest.fixture
def run(tmp_path):
    script = tmp_path / "a_command.py"
    script.write_text(COMMAND)

    def launch(*overrides):
        output = tmp_path / "output.txt"
        code, _ = run_script(script, overrides, output)
        files = [path for path in tmp_path.rglob("*") if path not in (script, output)]
        return code, output.read_text(), [path for path in files if "__pycache__" not in path.parts]

    return launch


def test_a_command_gets_checked_options_and_leaves_no_empty_folder(run):
    code, output, left = run("env=hopper", "env.num_envs=4")
    assert code == 0 and "hopper has 2048 frames; ['env=hopper', 'env.num_envs=4']" in output and not left


def test_a_command_continues_a_run_in_its_own_folder(run):
    code, output, left = run("resume=somewhere", "env.options.asset_root=there", "logger=tensorboard")
    assert code == 3 and "4 there tensorboard" in output and not left


def test_help_explains_groups_common_options_and_all_options(run):
    code, output, _ = run("--help")
    assert code == 0
    words = ("half_cheetah", "gaussian", "wandb", "resume=", "evaluate=", "clip_epsilon", "multi_async", "isaaclab")
    assert all(word in output for word in words)
    assert "base_env" not in output, "TorchRL's configurations are not ours"


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["env=half_cheeta"], ["half_cheeta", "Did you mean half_cheetah"]),
        (["start.tau=0.1"], ["start.tau is an option of another start=<choice>"]),
        (["loss.clip_epsilonn=0.1"], ["clip_epsilonn", "Did you mean clip_epsilon?"]),
        (["start=pape"], ["start/pape", "pretrained", "Did you mean paper?"]),
        (["seed=-1"], ["ValueError: seed=-1: Input should be greater than or equal to 0."]),
        (["policy=gaussian", "start=consistent"], ["has neither solver nor start", "'start=consistent'"]),
    ],
    ids=str,
)
def test_mistakes_are_explained_without_a_traceback(run, overrides, messages):
    code, output, left = run(*overrides)
    assert code == 1 and not left
    assert all(message in output for message in messages), output
    assert "Traceback" not in output and "pydantic" not in output


def test_explained_errors_are_those_that_a_user_can_mend():
    with pytest.raises(SystemExit, match="ValueError: seed"), explain_errors():
        raise ValueError("seed")
    with pytest.raises(ZeroDivisionError), explain_errors():
        raise ZeroDivisionError
    with pytest.raises(SystemExit), explain_errors(ZeroDivisionError):
        raise ZeroDivisionError


def test_an_evaluation_of_no_episodes_is_refused():
    check_rounds(1)
    with pytest.raises(ValueError, match=r"eval\.rounds=0"):
        check_rounds(0)


@pytest.mark.parametrize("device", ["cuda:77", "cuda:999"])
def test_a_device_that_is_not_there_is_named_beside_those_that_are(device):
    check_device("cpu")
    with pytest.raises(ValueError, match=rf"device={device}: .* can use cpu"):
        check_device(device)


def test_options_that_may_not_change_are_refused():
    refuse_others(["eval.rounds=3", "hydra.run.dir=x", "resume=y"], {"eval"}, "A run stays")
    with pytest.raises(ValueError, match=r"A run stays, and 'seed=1' would change it. May change: eval\."):
        refuse_others(["seed=1"], {"eval"}, "A run stays")


def test_an_option_of_fine_tuning_has_no_effect_on_pretraining():
    for override in ("loss.epochs=3", "eval.interval=3"):
        with pytest.raises(ValueError, match=rf"'{override}' has no effect here"):
            refuse_unused(compose([override], config_name="pretrain"), [override])


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["policy.encoder_sizes=[64]"], "without policy.encoder"),
        (["policy.min_std=0.1", "policy.scale=unit"], "with policy.scale=unit"),
        (["compile.mode=max-autotune"], "without compile.enabled=true"),
        (["policy.activation=tanh", "policy=transformer_flow"], "beside policy.transformer"),
    ],
)
def test_an_option_that_others_leave_without_effect_is_refused(overrides, why):
    with pytest.raises(ValueError, match=rf"'{re.escape(overrides[0])}' has no effect {why}: leave it out"):
        refuse_unused(compose(overrides), overrides)


def test_a_resumed_run_keeps_its_options_but_for_those_that_may_change():
    saved = compose(["env=isaaclab/g1_rough", "policy=gaussian", "env.num_envs=64", "seed=5"]).model_dump()
    overrides = [
        "collector.total_frames=300000",
        "logger=wandb",
        "logger.mode=online",
        "eval.interval=null",
        "resume=x",
    ]
    options = resumed_config(saved, overrides, {"collector.total_frames", "logger", "eval"})
    assert (options.collector.total_frames, options.eval.interval) == (300_000, None)
    assert options.collector.frames_per_batch == 64 * 24
    assert (options.logger.backend, options.logger.mode) == ("wandb", "online")
    assert options.seed == 5 and options.loss.entropy_coeff == 0.008 and options.resume is None
    for override in ("seed=6", "env=hopper", "~logger", "logger.mode=no", "eval.interval=0"):
        with pytest.raises(ValueError, match=override.partition("=")[0].lstrip("~")):
            resumed_config(saved, [override], {"collector.total_frames", "logger", "eval"})


def test_options_that_are_newer_than_a_run_take_their_defaults():
    saved = compose(["seed=5"]).model_dump()
    del saved["optim"]["critic_warmup"], saved["tolerance"]
    assert resumed_config(saved, [], ()) == compose(["seed=5"])
    with pytest.raises(ValueError, match=r"loss\.epochs=0"):
        resumed_config(saved | {"loss": {"epochs": 0}}, [], ())


def test_pretraining_is_resumed_by_its_own_schema():
    saved = compose(["pretrain.iterations=3"], config_name="pretrain").model_dump()
    options = resumed_config(saved, ["pretrain.iterations=9"], {"pretrain.iterations"}, PretrainOptions)
    assert options.pretrain.iterations == 9


def test_a_policy_that_was_trained_by_cuda_graphs_is_read_and_evaluated_without_a_gpu():
    saved = compose(["env=pendulum"]).model_dump(mode="json") | {"device": "cuda"}
    saved["compile"]["cudagraphs"] = True
    assert saved_options({"config": saved}, {"device": "cpu"}).device == "cpu"
    assert resumed_config(saved | {"device": "cpu"}, ["eval.num_envs=3"], {"eval"}).eval.num_envs == 3


def test_a_text_with_a_dollar_stays_as_it_is_in_a_resumed_run():
    saved = compose(["env=robomimic/can", "env.options.dataset=a"]).model_dump(mode="json")
    saved["env"]["options"]["dataset"] = "${b}.hdf5"
    assert resumed_config(saved, ["eval.num_envs=3"], {"eval"}).env.options.dataset == "${b}.hdf5"
