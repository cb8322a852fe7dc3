"""One thread for processes of the tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
