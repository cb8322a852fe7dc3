# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The command ``genpo-report``: training runs as one web page that opens offline.

genpo-report outputs/half_cheetah
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torchrl_genpo.commands.common import explain_errors
from torchrl_genpo.commands.completion import add_completion
from torchrl_genpo.report import write_report

__all__ = ["main"]

DESCRIPTION = """\
Writes one HTML page about training runs: curves over the seeds, last evaluations, differences of configuration, videos.
Runs that differ only in their seed are one curve with a band. The page needs no network and no other file.
"""

EXAMPLE = """\
example, every run at or below these folders:
  genpo-report outputs/half_cheetah outputs/hopper --output report.html
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="genpo-report",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or one above several")
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    parser.add_argument(
        "--video-limit", type=float, default=50.0, metavar="MB", help="of all embedded videos together; default: 50"
    )
    add_completion(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command."""
    options = _parser().parse_args(arguments)
    with explain_errors():
        warnings = write_report(options.runs, options.output, options.video_limit)
    for warning in warnings:
        sys.stderr.write(f"Warning: {warning}\n")
    sys.stdout.write(f"Report: {options.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
