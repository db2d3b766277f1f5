import sys

import cloudpickle
import pytest
import torch

from ranksearch.tasks.example import ExampleNet
from tests.tasks.user_code import write_user_code


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """A working directory with a user's modules, all trace of which goes with it."""
    write_user_code(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules, shipped = set(sys.modules), set(cloudpickle.list_registry_pickle_by_value())
    yield tmp_path
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    cloudpickle.cloudpickle._PICKLE_BY_VALUE_MODULES.intersection_update(shipped)


@pytest.fixture
def net():
    """An untrained net for 16 × 16 grey images, quick to build."""
    torch.manual_seed(0)
    return ExampleNet(channels=4).eval()
