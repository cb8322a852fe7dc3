"""How much is tried: a fixed, small set of examples in the suite; ``GENPO_FUZZ_EXAMPLES=1000`` draws many at random."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
COMMON = {"deadline": None, "suppress_health_check": SLOW, "database": None}
settings.register_profile("suite", derandomize=True, max_examples=12, **COMMON)
settings.register_profile("fuzz", max_examples=int(os.environ.get("GENPO_FUZZ_EXAMPLES", "12")), **COMMON)
settings.load_profile("fuzz" if "GENPO_FUZZ_EXAMPLES" in os.environ else "suite")
