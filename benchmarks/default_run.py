# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Wall-clock time and peak memory of the default training command, measured from outside.

    python benchmarks/default_run.py    # about four minutes

Writes ``default_run.md`` to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

from provenance import RESULTS, ROOT, origin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
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
        *origin("python benchmarks/default_run.py"),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "default_run.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
