# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the commands share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from torchrl_genpo.envs import WorkerError
from torchrl_genpo.training import DivergedError

__all__ = ["explain_errors"]


@contextlib.contextmanager
def explain_errors() -> Iterator[None]:
    """Ends the process with the message, not the traceback, of what a user can mend."""
    try:
        yield
    except (DivergedError, WorkerError, ValueError, OSError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
