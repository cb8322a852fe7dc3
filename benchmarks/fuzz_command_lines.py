# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Invalid command lines of the entry script, each run as a user would."""

from __future__ import annotations

import random
import zipfile
from dataclasses import dataclass
from pathlib import Path

from forks import run_script
from provenance import ROOT

SCRIPT = ROOT / "sota-implementations" / "genpo.py"
SMALL = [  # so that a mistake that is not one costs a second
    "env=pendulum",
    "env.num_envs=2",
    "collector.frames_per_batch=32",
    "collector.total_frames=64",
    "loss.mini_batch_size=16",
    "loss.epochs=1",
    "policy.hidden_sizes=[8]",
    "critic.hidden_sizes=[8]",
    "eval.num_envs=1",
]
WHOLE = [
    "env.num_envs",
    "collector.total_frames",
    "collector.frames_per_batch",
    "policy.time_embedding_dim",
    "solver.num_steps",
    "loss.num_memories",
    "loss.epochs",
    "loss.mini_batch_size",
    "diagnostics.num_memories",
    "eval.interval",
    "eval.num_envs",
    "checkpoint.interval",
    "num_threads",
]  # integers of at least 1
REAL = [
    "loss.gamma",
    "loss.gae_lambda",
    "loss.clip_epsilon",
    "loss.critic_coeff",
    "loss.entropy_coeff",
    "optim.lr",
    "optim.target_kl",
    "optim.min_lr",
    "optim.max_lr",
    "optim.max_grad_norm",
    "start.initial_scale",
]  # that must not be negative
FLAGS = ["video", "loss.normalize_advantage", "env.normalize_observation", "env.scale_reward", "compile.enabled"]
LISTS = ["policy.hidden_sizes", "critic.hidden_sizes"]
TEXTS = ["env.name", "policy.activation", "optim.schedule", "start.name", "solver.name", "loss.ratio", "device"]
GROUPS = {
    "env": ("hopper", "ant", "isaaclab/ant", "xhand/nut_bolt", "robomimic/can"),
    "policy": ("gaussian", "fpo", "policyflow", "dummy_flow", "reversible_flow"),
    "solver": ("two_step", "three_step", "alternating_coupling"),
    "start": ("paper", "consistent", "learned_scale"),
    "logger": ("tensorboard", "wandb", "csv"),
}
HUGE = ["1000000000000000000", "99999999999999999999999999", "1e30", "1e300"]
CONTRADICTIONS = [
    "policy=gaussian loss.ratio=both",
    "policy=reversible_flow solver=alternating_coupling",
    "policy=dummy_flow solver=two_step",
    "policy=self_adjoint_flow solver=three_step",
    "policy=fpo loss.entropy_coeff=0.1",
    "start=paper loss.entropy_coeff=0.01",
    "start=paper start.initial_scale=2",
    "start=paper +start.initial_scale=2",
    "start=paper +start.tau=1",
    "start=learned_scale +start.tau=0.3",
    "start=consistent start.tau=-1",
    "start=consistent start.learn_tau=each",
    "start=learned_scale start.scale=huge",
    "solver=three_step +solver.sigma=0.5",
    "solver=three_step solver.a=3.5",
    "solver.sigma=[0.5,0.5]",
    "solver.sigma=[a,b,c,d,e]",
    "solver.sigma=null",
    "solver.sigma=true",
    "solver.sigma=1.5",
    "solver.sigma=-1",
    "solver.sigma=0.01 solver.num_steps=8",
    "solver.num_steps=60 solver.sigma=0.5",
    "solver.gradient=none",
    "solver.adapt.quantity=speed",
    "solver.adapt.quantity=kl solver.sigma=1.0",
    "solver.adapt.quantity=kl solver.adapt.min_sigma=0.9",
    "solver.adapt.quantity=kl solver.adapt.max_sigma=0.6",
    "solver.adapt.quantity=kl solver.adapt.target=0",
    "solver.adapt.quantity=kl solver.sigma=[0.5,0.5,0.5,0.5,0.5]",
    "optim.min_lr=1 optim.max_lr=0.1",
    "policy=transformer_flow policy.transformer.chunk_size=3",
    "policy=transformer_flow policy.transformer.width=10",
    "policy=transformer_flow policy.transformer.num_heads=0",
    "policy=transformer_flow +policy.transformer.depth=3",
    "policy=fpo policy.options.num_steps=0",
    "policy=fpo policy.options.perturbation=-1",
    "policy=fpo +policy.options.sigma=1",
    "policy=fpo policy.loss.error_scale=max",
    "policy=fpo +policy.loss.nothing=1",
    "policy=policyflow policy.options.initial_scale=0",
    "policy.time_embedding_dim=5",
    "policy.hidden_sizes=[]",
    "policy.hidden_sizes=[0]",
    "policy.hidden_sizes=[64,-64]",
    "policy.hidden_sizes=[100000,100000,100000]",
    "policy.hidden_sizes=64",
    "policy.hidden_sizes=[64,sixty]",
    "device=cuda:99",
    "device=tpu9",
    "device=cpu:cpu",
    "device=meta",
    "compile.cudagraphs=true",
    "env=isaaclab/ant device=cpu",
    "env.name=isaaclab/ant",
    "env.name=xhand/nut",
    "env.name=robomimic/cann",
    "env.name=CartPole-v1",
    "env.name=Blackjack-v1",
    "env.name=CarRacing-v3",
    "env.name=Hopper-v2",
    "env.name=os:system",
    "env.name='__import__(1)'",
    "+env.options.speed=1",
    "env=xhand/nut_bolt env.options.nuts=[oval]",
    "env=xhand/nut_bolt env.options.nuts=[]",
    "env=xhand/nut_bolt env.options.history=0",
    "env=xhand/nut_bolt +env.options.randomization.mass=[1,2]",
    "env=xhand/nut_bolt +env.options.scene.side=top",
    "env=xhand/nut_bolt +env.options.scene.timestep=0.003",
    "env=xhand/nut_bolt +env.options.scene.timestep=0",
    "env=xhand/nut_bolt +env.options.rewards.pleasure=1",
    "logger.backend=paper",
    "env.num_envs=131072",
    "eval.num_envs=131072",
    "collector.frames_per_batch=1000000000",
    "collector.kind=threads",
    "collector=multi_sync collector.num_workers=0",
    "collector=multi_sync collector.num_workers=3",
    "collector=multi_async collector.max_staleness=-1",
    "collector=rpc collector.port=70000",
    "loss.proximal_decay=2",
    "policy=fpo loss.proximal_decay=0.9",
    "hydra.run.dir=/proc/run",
    "hydra.run.dir=/dev/null/run",
    "hydra.run.dir=null",
    "hydra.run.dir=${nowhere}",
    "~loss.epochs",
    "~loss",
    "~env",
    "~optim.lr",
    "~env.name",
    "~policy.name",
    "loss=null",
    "loss=3",
    "env=null",
    "optim=null",
    "collector=[]",
    "eval=null",
    "checkpoint=null",
    "seed=${oc.env:NO_SUCH_VARIABLE}",
    "seed=${seed}",
    "seed=${quotient:1,0}",
    "seed=${no_resolver:1}",
    "seed=-1",
    "seed=1.5",
    "seed=99999999999999",
    "loss.epochs",
    "=3",
    "loss.epochs=[1",
    "loss.epochs={",
    "+loss.epochs=3",
    "++",
    "@",
    "env@policy=hopper",
    "--no-such-flag",
    "--config-name=nothing",
    "--config-dir=/nowhere",
    "--cfg",
    "--multirun loss.epochs=0,-1",
    "--multirun seed=range(",
    "hydra/launcher=nothing",
]


@dataclass(frozen=True)
class Outcome:
    """How a command line ended.

    Attributes:
        command (tuple of str): its options.
        code (int): exit code, or minus the signal.
        output (str): of both streams.
        seconds (float): wall-clock time.
        left (tuple of str): files and run folders that it left behind.
    """

    command: tuple[str, ...]
    code: int
    output: str
    seconds: float
    left: tuple[str, ...]

    @property
    def fault(self) -> str | None:
        """What a user could complain about, or ``None``."""
        if self.code < 0:
            return f"ended by signal {-self.code} after {self.seconds:.0f} s"
        if self.code == 0:
            return "accepted"
        if "Traceback (most recent call last)" in self.output:
            return "traceback"
        if len(self.output.strip()) < 10:
            return "no message"
        return f"left {', '.join(self.left)}" if self.left else None


def run(command: list[str], folder: Path, limit: float = 60.0) -> Outcome:
    """Runs the script with these options in a new folder; ``run`` in it is the folder of the run."""
    folder.mkdir(parents=True)
    output = folder / "output.txt"
    code, seconds = run_script(SCRIPT, command, output, limit)
    left = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != output]
    left += [path for path in (folder / "run",) if path.is_dir() and not any(path.rglob("*"))]
    names = tuple(str(path.relative_to(folder)) for path in left if path.name != "multirun.yaml")
    return Outcome(tuple(command), code, output.read_text(errors="replace"), seconds, names)


def typo(rng: random.Random, word: str) -> str:
    """The word with a letter lost, doubled or swapped."""
    places = [i for i, letter in enumerate(word) if letter.isalpha() and (i == 0 or word[i - 1] != letter)]
    i = rng.choice(places)
    kind = rng.randrange(3)
    if kind == 0 and len(word) > 3:
        return word[:i] + word[i + 1 :]
    if kind == 1 and i + 1 < len(word) and word[i] != word[i + 1] and word[i + 1].isalpha():
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return word[:i] + word[i] + word[i:]


def foreign_files(folder: Path) -> list[Path]:
    """Files that are no checkpoint, and one that is none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.torchrl").touch()
    (folder / "text.torchrl").write_text("hello\n")
    with zipfile.ZipFile(folder / "other.torchrl", "w") as archive:
        archive.writestr("readme.txt", "hello")
    (folder / "run").mkdir(exist_ok=True)
    (folder / "configured").mkdir(exist_ok=True)
    (folder / "configured" / "config.yaml").write_text("env: {name: pendulum}\n")
    (folder / "strange").mkdir(exist_ok=True)
    (folder / "strange" / "config.yaml").write_text("[1, 2")
    names = ("empty.torchrl", "text.torchrl", "other.torchrl", "run", "configured", "strange", "nowhere")
    return [*(folder / name for name in names), ROOT / "README.md", Path("/dev/null"), Path("/")]


def mistake(rng: random.Random, files: list[Path]) -> list[str]:
    """One thing that is wrong, as options of the script."""
    kind = rng.randrange(8)
    if kind == 0:
        return [f"{typo(rng, rng.choice(WHOLE + REAL + FLAGS))}=1"]
    if kind == 1:
        group = rng.choice(list(GROUPS))
        return [f"{group}={typo(rng, rng.choice(GROUPS[group]))}"]
    if kind == 2:
        wrong = {
            "whole": (WHOLE, ["abc", "[1,2]", "{a:1}", "null", "true", "1.5", "nan", "inf", "''", "'12'"]),
            "real": (REAL, ["abc", "[1,2]", "{a:1}", "null", "true", "nan", "inf", "''", "1_", "0x"]),
            "flag": (FLAGS, ["maybe", "3", "[true]", "null", "0.5", "{}"]),
            "text": (TEXTS, ["7", "[a]", "{a:b}", "null", "true", "''", "'\\x00'"]),
            "list": (LISTS, ["3", "abc", "[a]", "[1.5]", "null", "true", "[[8]]", "{a:8}"]),
        }
        options, values = wrong[rng.choice(list(wrong))]
        return [f"{rng.choice(options)}={rng.choice(values)}"]
    if kind == 3:
        return [f"{rng.choice(WHOLE)}={rng.choice(['0', '-1', str(-rng.randrange(1, 10**9)), *HUGE])}"]
    if kind == 4:
        return [f"{rng.choice(REAL)}={rng.choice(['-1', '-inf', str(-rng.random()), *HUGE[1:]])}"]
    if kind == 5:
        return [f"{rng.choice(['resume', 'evaluate', 'policy.init'])}={rng.choice(files)}"]
    return rng.choice(CONTRADICTIONS).split()


def command_lines(count: int, files: list[Path], seed: int = 0) -> list[list[str]]:
    """Each contradiction once, then random mistakes; every fifth of those has two."""
    rng = random.Random(seed)
    lines = [entry.split() for entry in CONTRADICTIONS]
    while len(lines) < count:
        lines.append([option for _ in range(1 + (len(lines) % 5 == 0)) for option in mistake(rng, files)])
    rng.shuffle(lines)
    return lines[:count]


def full_command(line: list[str]) -> list[str]:
    """A small run with these mistakes; where it continues a run, as that says."""
    keeps = any(option.startswith(("resume", "hydra.run.dir", "--multirun")) for option in line)
    overridden = {option.split("=")[0].lstrip("+~") for option in line}
    small = [option for option in SMALL if option.split("=")[0] not in overridden]
    if any(option.startswith("resume") for option in line):
        small = []
    return [*small, *([] if keeps else ["hydra.run.dir=run"]), *line]
