"""Processes that the tests start use one thread each; tests of extras that are not installed are skipped."""

import importlib.util
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
PACKAGES = {
    "benchmarks": "rliable",
    "deploy": "onnxruntime",
    "robomimic": "h5py",
    "sweeps": "submitit",
    "tensorboard": "tensorboard",
    "video": "imageio_ffmpeg",
    "wandb": "wandb",
}
"""A package of each extra, by the names that ``pytest.mark.extras`` takes."""
DOCTESTS = {"exporter.py": "deploy"}
"""The extra that the examples of a module need."""


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    for item in items:
        if isinstance(item, pytest.DoctestItem) and item.path.name in DOCTESTS:
            item.add_marker(pytest.mark.extras(DOCTESTS[item.path.name]))
        for mark in item.iter_markers("extras"):
            for extra in mark.args:
                if importlib.util.find_spec(PACKAGES[extra]) is None:
                    item.add_marker(pytest.mark.skip(reason=f'pip install "torchrl-genpo[{extra}]"'))
