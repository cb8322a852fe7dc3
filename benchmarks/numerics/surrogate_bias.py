# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers how far the log ratio that each method feeds to PPO is from the exact one, after a real update.

    python -m benchmarks.numerics.surrogate_bias    # about ten minutes

Every policy trains on HalfCheetah for some updates with its shared setting; then one more update, and for each action
of its batch the log ratio that its loss computes is compared with the exact one in float64:

- GenPO++ and GenPO: density of the pair, its noise pushed forward, the determinant by automatic differentiation.
- FPO++: density of the action, Euler's steps inverted by Newton's rule, the determinant by automatic differentiation.
- PolicyFlow: density of (noise, action), the flow integrated from the stored noise by the new network.

It writes ``surrogate_bias.md`` and ``surrogate_bias.png`` to ``benchmarks/results``.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.func import jacfwd, vmap
from torchrl.envs import ExplorationType, set_exploration_type

from benchmarks._lib.in_process import configure, normalizers, prepare, start_training
from benchmarks._lib.origin import RESULTS, origin
from benchmarks._lib.report import parser, pyplot, save
from torchrl_genpo.flow import euler, midpoint
from torchrl_genpo.modules import encode

METHODS = {
    "reversible_flow": ("GenPO++", ["policy=reversible_flow"]),
    "genpo": ("GenPO", ["policy=genpo"]),
    "policyflow": ("PolicyFlow", ["policy=policyflow"]),
    # unperturbed: the perturbed action has no density in closed form
    "fpo": ("FPO++", ["policy=fpo", "policy.options.perturbation=0", "policy.loss.num_samples=16"]),
}
"""The label and the options of the entry script of each method."""
NEWTON_STEPS = 12
POINTS = 2048
"""The number of points of a panel that are drawn."""


def velocity_of(actor: Any, observation: Tensor) -> Callable[[Tensor, float], Tensor]:
    """Returns the velocity ``(x [..., d], t)`` of observations ``[..., o]``."""
    context = actor.velocity.condition(observation)
    return lambda x, t: actor.velocity(x, torch.as_tensor(t, dtype=x.dtype), context)


def log_normal(x: Tensor) -> Tensor:
    """Returns the log density of standard normal noise."""
    return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)


def exact_pair(actor: Any, data: TensorDictBase) -> Tensor:
    """Returns the log density of stored pairs, by automatic differentiation of the whole map from noise to pair."""
    with torch.no_grad():
        noise = torch.stack(
            actor.get_dist(data).to_noise(data[actor.action_key], data[actor.memory_key]), 1
        )  # [n, 2, d]

    def pair(noise: Tensor, observation: Tensor) -> Tensor:
        velocity = velocity_of(actor, observation)
        start = actor.start.from_noise(velocity, *noise, solver=actor.solver)
        x, memory = actor.solver.integrate(velocity, *start)
        if actor.gaussian is not None:
            memory = memory - actor.memory_weight * x
            loc, scale = actor.gaussian(observation)
            x = loc + scale / actor.width * x
        return torch.cat([x, memory])

    jacobians = vmap(jacfwd(pair))(noise, data[actor.in_keys[0]]).flatten(2)
    return log_normal(noise.flatten(1)) - torch.linalg.slogdet(jacobians).logabsdet


def exact_euler(actor: Any, data: TensorDictBase) -> Tensor:
    """Returns the log density of what Euler's rule makes of normal noise."""

    def log_density(action: Tensor, observation: Tensor) -> Tensor:
        velocity, x, log_det = velocity_of(actor, observation), action, torch.zeros((), dtype=action.dtype)
        for i in reversed(range(actor.num_steps)):

            def step(x: Tensor, t: float = i / actor.num_steps) -> Tensor:
                return x + velocity(x, t) / actor.num_steps

            target = x
            for _ in range(NEWTON_STEPS):
                x = x - torch.linalg.solve(jacfwd(step)(x), step(x) - target)
            log_det = log_det + torch.linalg.slogdet(jacfwd(step)(x)).logabsdet
        carried = euler(velocity, x, actor.num_steps)
        return torch.where((carried - action).abs().max() < 1e-8, log_normal(x) - log_det, torch.nan)

    return vmap(log_density)(data["action"], data[actor.in_keys[0]])


def exact_residual(actor: Any, data: TensorDictBase) -> Tensor:
    """Returns the log density of (noise, action), up to that of the noise, which no update changes."""
    end = midpoint(velocity_of(actor, data[actor.in_keys[0]]), data["flow_start"], actor.num_steps)
    return actor.residual_dist(end).log_prob(data["action"])


EXACT = {
    "reversible_flow": exact_pair,
    "genpo": exact_pair,
    "policyflow": exact_residual,
    "fpo": exact_euler,
}


def surrogate(name: str, loss: Any, data: TensorDictBase) -> Tensor:
    """Returns the log ratios that the loss makes of prepared data, ``[n]``, or ``[n, k]`` of every draw of noise."""
    with torch.no_grad():
        if name == "fpo":
            return data["flow_error"] - loss._error(data, data["flow_noise"], data["flow_time"])
        return loss._get_cur_log_prob(data)[0] - data["action_log_prob"]


@set_exploration_type(ExplorationType.RANDOM)
def measure(name: str, options: list[str], updates: int) -> tuple[Tensor, Tensor]:
    """Returns the exact log ratios ``[n]`` of one update and those that the method uses, ``[n]`` or ``[n, k]``."""
    cfg = configure(*options, "seed=0")
    with tempfile.TemporaryDirectory() as folder:
        training = start_training(cfg, Path(folder, "run"))
        batches = iter(training.collection)
        for i in range(updates):
            training.learn(next(batches), i * cfg.collector.frames_per_batch)
        data = next(batches)
        before = copy.deepcopy(training.policy)
        prepared = prepare(training.loss, data.reshape(-1)).clone()
        training.learn(data, updates * cfg.collector.frames_per_batch)
        for mine, theirs in zip(normalizers(training.policy), normalizers(before), strict=True):
            mine.load_state_dict(theirs.state_dict())  # the update itself saw these statistics
        found = surrogate(name, training.loss, prepared)
        training.close()
    with torch.no_grad():  # each policy reads the data by all of its own networks
        old, new = (EXACT[name](*encode(policy.double(), prepared.double())) for policy in (before, training.policy))
    return new - old, found.double()


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--updates", type=int, default=50, help="before the one that is looked at; default: 50")
    arguments.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    options = arguments.parse_args()
    torch.set_num_threads(1)

    lines = [
        "# The log ratio that PPO is given, against the exact one",
        "",
        f"HalfCheetah, one update of 2048 actions after {options.updates} others, shared setting. The exact log ratio "
        "is computed in float64 without what the method relies on. Bias and spread are mean and standard deviation of "
        "the difference; wrong side: actions that have become likelier and are said to have become less likely, or the "
        "reverse. FPO++'s ratio is bounded for each draw of noise and time; the mean of 16 draws is FPO's.",
        "",
        "| method | ratio of | exact log ratio, standard deviation | bias | spread | correlation | wrong side |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    notes: list[str] = []
    subjects = {"policyflow": "(noise, action)", "fpo": "the action"}
    figure, panels = pyplot().subplots(
        1, len(options.methods), figsize=(3.2 * len(options.methods), 3.3), layout="constrained", squeeze=False
    )
    for panel, name in zip(panels[0], options.methods, strict=True):
        label, overrides = METHODS[name]
        exact, found = measure(name, overrides, options.updates)
        known = exact.isfinite()
        if not known.all():
            notes.append(f"{label}: {(~known).sum()} actions are left out, whose noise Newton's rule did not find.")
        exact, found = exact[known], found[known]
        kinds = {"": found} if found.ndim == 1 else {", each draw": found, ", mean of 16": found.mean(-1, keepdim=True)}
        for kind, values in kinds.items():
            wide = exact if values.ndim == 1 else exact.unsqueeze(-1).expand_as(values)
            error = values - wide
            correlation = torch.corrcoef(torch.stack([wide.flatten(), values.flatten()]))[0, 1]
            wrong = ((values > 0) != (wide > 0)).double().mean()
            cells = [subjects.get(name, "(action, memory)"), f"{exact.std():.3f}", f"{error.mean():+.2g}"]
            cells += [f"{error.std():.2g}", f"{correlation:.3f}", f"{100 * wrong:.1f} %"]
            lines.append(f"| {label}{kind} | {' | '.join(cells)} |")
            drawn = torch.randperm(values.numel(), generator=torch.Generator().manual_seed(0))[:POINTS]
            panel.plot(wide.flatten()[drawn], values.flatten()[drawn], ".", ms=2, alpha=0.5, label=label + kind)
        limit = 3 * exact.std().item()
        panel.plot([-limit, limit], [-limit, limit], "k-", lw=0.8)
        panel.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="exact log ratio", title=label)
        panel.grid(alpha=0.3)
        if found.ndim > 1:
            panel.legend(frameon=False, fontsize=7, markerscale=4)
    panels[0][0].set_ylabel("log ratio that PPO is given")
    figure.savefig(RESULTS / "surrogate_bias.png", dpi=130)
    lines += ["", *notes] if notes else []
    save(RESULTS / "surrogate_bias.md", [*lines, *origin()])


if __name__ == "__main__":
    main()
