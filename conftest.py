"""Processes that the tests start use one thread each."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
