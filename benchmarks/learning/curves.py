# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers which policy learns best: the flow, the Gaussian and the methods of others, each in its tuned setting.

    python -m benchmarks.learning.curves --policies gaussian reversible_flow
    python -m benchmarks.learning.curves --policies genpo fpo policyflow --seeds 1 2 3
    python -m benchmarks.learning.curves --report       # tables and plots of the runs that are there

``PROTOCOL.md`` says what is compared. A method's own name stands for the setting that ``tuning.py`` chose, which must
have finished; ``<method>_shared`` is the setting that all share, ``<method>_published`` that of its paper;
``gaussian_covariance`` and ``gaussian_state_dependent`` have the tuned Gaussian's setting and richer noise. A run takes
five to fifteen minutes on one core. Every finished run is a line of ``learning.jsonl`` and is never run again; an
interrupted one resumes. The reports are ``learning.md`` and ``learning.png``, task by task, and ``learning_iqm.md`` and
``learning_iqm.png`` over the tasks that most seeds of the Gaussian have finished, and over more of fewer seeds
(``aggregate.py``). All files lie in ``benchmarks/results``.
"""

from __future__ import annotations

import csv

from benchmarks._lib.origin import RESULTS
from benchmarks._lib.policies import BASELINES
from benchmarks._lib.report import origins, parser, save
from benchmarks._lib.runs import by_task_and_policy, cost, draw, evaluation_cells, execute_asked
from benchmarks.learning import aggregate
from benchmarks.learning.tuning import FIRST_NOISE, SHARED, Tuning

TASKS = ("half_cheetah", "hopper", "walker2d", "ant", "humanoid")
LABELS = {
    "gaussian": "Gaussian",
    "reversible_flow": "flow",
    **{method: BASELINES[method][0] for method in ("genpo", "fpo", "policyflow")},
}
CONTROLS = {
    "covariance": "Gaussian with a covariance",
    "state_dependent": "Gaussian whose deviation depends on the state",
}
"""The Gaussians with richer noise, by the ``policy.scale`` of each."""


def policies() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Returns the label and the options of the entry script of each policy that can be run."""
    tuning = Tuning()
    found = {}
    for method in FIRST_NOISE:
        chosen, options = tuning.chosen(method), (f"policy={method}",)
        if chosen is not None:
            found[method] = (LABELS[method], (*options, *chosen[1]))
        found[f"{method}_shared"] = (f"{LABELS[method]}, shared setting", (*options, *SHARED.get(method, ())))
    if "gaussian" in found:
        tuned = found["gaussian"][1]
        found |= {f"gaussian_{scale}": (label, (*tuned, f"policy.scale={scale}")) for scale, label in CONTROLS.items()}
    published = {name: (label, tuple(options)) for name, (label, options) in BASELINES.items() if "published" in name}
    return found | published


def relative_times() -> dict[str, float]:
    """Returns the time of a method's whole run, evaluation aside, as a ratio to the Gaussian's.

    The times are those of ``table1.csv``, whose methods took turns in one process; the times of the runs here depend on
    what ran beside them.
    """
    with (RESULTS / "table1.csv").open() as file:
        rows = {row["method"]: float(row["iteration"]) for row in csv.DictReader(file) if row["task"] == "half_cheetah"}
    return {method: rows[method] / rows["gaussian"] for method in FIRST_NOISE}


def main() -> None:
    known = policies()
    arguments = parser(__doc__)
    arguments.add_argument("--policies", nargs="+", default=list(known), choices=known)
    records = execute_asked("learning", known, arguments, TASKS, [1, 2, 3, 4, 5], frames=1_000_000)
    lines = [
        f"# Learning: returns after {records[0]['frames']:,} frames",
        "",
        "Median of the seeds (each in brackets, from 1 up), mean of 10 evaluation episodes, with zero noise and with "
        "random noise. `benchmarks/learning/PROTOCOL.md` says what is compared, `table1.md` what each costs.",
        "",
        "| task | policy | zero noise | random noise |",
        "|---|---|---:|---:|",
    ]
    for task, policy, chosen in by_task_and_policy(records, known):
        lines.append(f"| {task} | {known[policy][0]} | {' | '.join(evaluation_cells(chosen))} |")
    recorded = {record["policy"]: record["options"] for record in records}
    lines += ["", "The options of each, and what its runs took:", ""]
    for policy, options in recorded.items():
        took = cost(record for record in records if record["policy"] == policy)
        lines.append(f"- {known[policy][0]}: `{' '.join(options)}`; {took}")
    save(RESULTS / "learning.md", [*lines, *origins(records)])
    shown = {policy: known[policy] for policy in FIRST_NOISE if policy in recorded}
    draw(records, shown, RESULTS / "learning.png", unit=1e3, xlabel="thousand frames", ylabel="training return")
    labels = {policy: label for policy, (label, _) in known.items()}
    aggregate.report(records, labels, RESULTS / "learning_iqm", relative_times())


if __name__ == "__main__":
    main()
