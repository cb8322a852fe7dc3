# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Answers how long the default training command takes, and how much memory, measured from outside.

    python -m benchmarks.learning.default_run    # about four minutes

It writes ``default_run.md`` to ``benchmarks/results``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from benchmarks._lib.origin import RESULTS, ROOT, origin
from benchmarks._lib.report import parser, save


def main() -> None:
    parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "sota-implementations/genpo.py", f"hydra.run.dir={folder}/run"]
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        _, status, usage = os.wait4(process.pid, 0)
        minutes = (time.perf_counter() - begin) / 60
    if status:
        sys.exit(f"The run failed: {' '.join(command)}")
    gigabytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9  # macOS counts in bytes
    lines = [
        "# The default run",
        "",
        f"`python sota-implementations/genpo.py` (HalfCheetah-v5, 500k frames, evaluation included): **{minutes:.1f} "
        f"minutes**, load average {os.getloadavg()[0]:.1f}; peak memory **{gigabytes:.2f} GB**.",
    ]
    save(RESULTS / "default_run.md", [*lines, *origin()])


if __name__ == "__main__":
    main()
