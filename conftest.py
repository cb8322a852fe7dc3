"""Hydra's store of configurations, apart from that of TorchRL's trainers; and one thread for processes of the tests."""

import os

import pytest
from hydra.core.config_store import ConfigStore

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def no_foreign_schemas(request):
    """TorchRL registers configurations when it is imported; Hydra would take them for schemas of our files' names."""
    store = ConfigStore.instance()
    saved = store.repo
    if "trainers" not in request.path.parts:
        store.repo = {name: node for name, node in saved.items() if name.startswith(("hydra", "_"))}
    yield
    store.repo = saved
