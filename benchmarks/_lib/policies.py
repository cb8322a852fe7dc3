# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The policies that several benchmarks compare, and what their readers must know about the comparison."""

from __future__ import annotations

__all__ = ["BASELINES"]

BASELINES = {
    "genpo": ("GenPO (dummy action)", ["policy=genpo"]),
    "genpo_published": (
        "GenPO (dummy action), its own setting",
        ["policy=genpo", "policy.scale=unit", "optim.target_kl=0.01"],
    ),
    "fpo": ("FPO++", ["policy=fpo"]),
    "fpo_published": (
        "FPO++, its own setting (for thousands of environments)",
        [
            "policy=fpo",
            "policy.options.num_steps=64",
            "policy.loss.num_samples=16",
            "loss.clip_epsilon=0.05",
            "loss.epochs=16",
            "optim.schedule=constant",
            "optim.lr=1e-4",
        ],
    ),
    "policyflow": ("PolicyFlow", ["policy=policyflow"]),
    "policyflow_published": (
        "PolicyFlow, its own setting",
        ["policy=policyflow", "loss.epochs=5", "loss.entropy_coeff=0.0025", "optim.lr=1e-4", "optim.target_kl=0.01"],
    ),
}
"""The label and the options of the entry script of each method of others, in the shared and in its own setting."""
