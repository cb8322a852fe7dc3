# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Reports: what training runs did, as one web page that opens offline."""

from torchrl_genpo.report.page import write_report

__all__ = ["write_report"]
