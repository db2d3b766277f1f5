import tempfile

import pytest
import torch

from ranksearch.factorize import METHODS
from ranksearch.space import RankRule, SpaceConfig, layer_records
from ranksearch.threads import threads
from ranksearch.workbench import Workbench
from tests.profiling.nets import net_named, task_of

NETS = ("residual", "plain", "reused", "transformer")


@pytest.fixture(scope="module", autouse=True)
def _own_places(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, threads(1):
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("locks")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def bench_of(net: str) -> Workbench:
    return Workbench(task_of(net_named(net)), torch.device("cpu"))


def records_of(bench, methods=("svd", "spatial_svd", "channel_svd", "tucker2"), per_method=3):
    ranks = RankRule(multiple=2, kept=(1e-6, 1.0), per_method=per_method)
    space = SpaceConfig(name="all", methods=methods, ranks=ranks, dense=(), objectives=("parameters", "accuracy"))
    assert set(methods) <= set(METHODS)
    return layer_records(space, bench.layers)
