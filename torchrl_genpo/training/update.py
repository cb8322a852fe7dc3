# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One update: the optimizer's step, and what goes into and comes out of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.objectives import ClipPPOLoss, TargetNetUpdater

from torchrl_genpo.training.finite import DivergedError, check_finite
from torchrl_genpo.training.ranks import Ranks

__all__ = ["batch_keys", "make_update", "update_metrics"]

WATCHED = ("kl_approx", "inversion_error")  # beside the losses, whose clip hides a ratio that is not finite
CAPTURE_AFTER = 5  # calls, in the last of which a CUDA graph is captured
MEANS = (
    "clip_fraction",
    "loss_objective",
    "loss_critic",
    "grad_norm",
    "entropy",
    "kl_reference",
    "loss_anchor",
)
"""What is logged as its mean over an update."""


def make_update(
    loss: ClipPPOLoss,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
    *,
    compile_mode: str | None = None,
    cudagraphs: bool = False,
    ranks: Ranks | None = None,
    proximal: TargetNetUpdater | None = None,
) -> Callable[[TensorDictBase], TensorDictBase]:
    """Returns the function that makes one optimizer step on one mini-batch.

    Args:
        loss (ClipPPOLoss): the objective; every output called ``loss_*`` is minimised.
        optimizer (Optimizer): over the parameters of ``loss``.
        max_grad_norm (float): clipping of the gradient's norm.

    Keyword Args:
        compile_mode (str, optional): compiles loss and gradient with this ``torch.compile`` mode.
        cudagraphs (bool, optional): captures loss and gradient in a CUDA graph.
        ranks (Ranks, optional): processes over which gradients are averaged.
        proximal (TargetNetUpdater, optional): moves the proximal policy of a loss with ``delay_actor=True`` after each
            step.

    Returns:
        A function from a batch to the detached outputs of the loss and ``grad_norm``. It raises
        :class:`DivergedError`, before the step, when the loss, its KL, the inversion's error or the gradient is not
        finite, on all ranks alike.
    """
    params = [p for p in loss.parameters() if p.requires_grad]

    def gradients(batch: TensorDictBase) -> TensorDictBase:
        optimizer.zero_grad(set_to_none=True)
        out = loss(batch)
        sum(out[key] for key in out.keys() if key.startswith("loss_")).backward()
        return out.detach()

    if compile_mode is not None:
        gradients = torch.compile(gradients, mode=compile_mode)
    if cudagraphs:
        from tensordict.nn import CudaGraphModule

        captured = CudaGraphModule(gradients, in_keys=[], out_keys=[], warmup=CAPTURE_AFTER)

        def replayed(batch: TensorDictBase) -> TensorDictBase:
            is_capturing = captured.counter == CAPTURE_AFTER - 1
            out = captured(batch)
            # capturing leaves gradients behind that the first replay computes
            return captured(batch) if is_capturing else out

        gradients = replayed

    def update(batch: TensorDictBase) -> TensorDictBase:
        out = gradients(batch)
        if ranks is not None:
            ranks.average_gradients(params)
        gradients_of = {name: p.grad for name, p in loss.named_parameters() if p.grad is not None}
        grad_norm = nn.utils.get_total_norm(gradients_of.values())
        losses = {key: out[key] for key in out.keys() if key.startswith("loss_") or key in WATCHED}
        try:
            check_finite({**losses, "grad_norm": grad_norm}, "the loss", ranks)
        except DivergedError:  # where it began, now that it no longer matters what the look costs
            check_finite(losses, "the loss", ranks)
            check_finite(gradients_of, "the gradient of the loss", ranks)
            raise
        nn.utils.clip_grads_with_norm_(params, max_grad_norm, grad_norm)
        optimizer.step()
        if proximal is not None:
            proximal.step()
        return out.set("grad_norm", grad_norm)

    return update


def batch_keys(loss: ClipPPOLoss, policy: TensorDictModule) -> list[NestedKey]:
    """What an update reads of the collected data, after the advantages were estimated."""
    read = [key for key in loss.in_keys if not (isinstance(key, tuple) and key[0] == "next")]
    return [*dict.fromkeys([*read, *policy.out_keys, "advantage", "value_target", "state_value"])]


def update_metrics(outputs: TensorDictBase) -> dict[str, float]:
    """Means of what the mini-batches ``[n]`` of an update returned, as columns of ``metrics.csv``."""
    means = outputs.mean(0)
    metrics = {f"train/{key}": means[key].item() for key in MEANS if key in means.keys()}
    metrics["train/kl"] = means["kl_approx"].item()
    if "inversion_error" in outputs.keys():
        # the first mini-batch, where no parameter has changed yet
        metrics["train/inversion_error"] = outputs["inversion_error"][0].item()
    return metrics
