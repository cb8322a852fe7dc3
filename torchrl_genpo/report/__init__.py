# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Reports: what training runs did, as one web page that opens offline."""

from torchrl_genpo.report.groups import Group, Task, group_runs
from torchrl_genpo.report.page import write_report
from torchrl_genpo.report.reading import Run, read_run, read_runs

__all__ = ["Group", "Run", "Task", "group_runs", "read_run", "read_runs", "write_report"]
