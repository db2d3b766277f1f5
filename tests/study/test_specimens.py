"""What the self-test measures: many different nets, from cheap to almost dense, the same every time."""

import pytest
import torch
from scipy.stats import spearmanr

from ranksearch.layers import total_macs
from ranksearch.study.specimens import NUM_NETS, specimens
from ranksearch.tasks.classification import cross_entropy
from ranksearch.tasks.example import ExampleNet
from ranksearch.tasks.metrics import accuracy
from ranksearch.tasks.split import ArraySplit
from ranksearch.tasks.task import Task


@pytest.fixture(scope="module")
def task():
    """The example's net, never trained."""
    split = ArraySplit(torch.zeros(4, 1, 16, 16), torch.zeros(4, dtype=torch.long), [0.0], [1.0])
    return Task(
        model=ExampleNet().eval(), train=split, calibration=split, validation=split, test=None, loss=cross_entropy,
        metric=accuracy, metric_name="accuracy", example_input=torch.zeros(1, 1, 16, 16), distillation=None,
        model_name="example", data_name="none",
    )  # fmt: skip


def test_many_nets_of_many_costs(task):
    state = torch.get_rng_state()
    subject = specimens(task)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(subject.nets) == len(subject.macs) == NUM_NETS
    assert len({str(net) for net in subject.nets}) == NUM_NETS
    dense = total_macs(subject.dense, subject.example)
    assert min(subject.macs) < 0.15 * dense
    assert max(subject.macs) > 0.8 * dense
    assert spearmanr(range(NUM_NETS), subject.macs).statistic > 0.9  # from cheap to dear, but not in order
    for net, macs in list(zip(subject.nets, subject.macs, strict=True))[::10]:
        assert total_macs(net, subject.example) == macs


def test_the_same_every_time(task):
    a = specimens(task, num=5)
    torch.rand(1)  # whatever was drawn meanwhile
    b = specimens(task, num=5)
    assert a.macs == b.macs
    first, second = ([p for net in found.nets for p in net.parameters()] for found in (a, b))
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))
