"""BatchNorm re-estimation against statistics computed by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.calibrate import reestimate_batchnorm


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5, momentum=0.3), nn.Dropout(0.5), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4)
    )


def batches(num=4, size=16):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 2, 9, 9, generator=generator) * (1 + i) + i for i in range(num)]


def test_statistics_are_the_average_over_the_batches(net):
    data = batches()
    reestimate_batchnorm(net, data)
    activations = [net[0](batch).detach().numpy() for batch in data]
    means = np.mean([a.mean((0, 2, 3)) for a in activations], axis=0)
    variances = np.mean([a.transpose(1, 0, 2, 3).reshape(5, -1).var(1, ddof=1) for a in activations], axis=0)
    np.testing.assert_allclose(net[1].running_mean, means, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net[1].running_var, variances, rtol=1e-5)


def test_a_later_layer_sees_what_the_batch_statistics_of_an_earlier_one_give(net):
    (batch,) = batches(1)
    reestimate_batchnorm(net, [batch])
    normalised = net[1].train()(net[0](batch))
    expected = net[3](normalised).mean((0, 2, 3))
    torch.testing.assert_close(net[4].running_mean, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_but_the_statistics_changes(net, training):
    net.train(training)
    before = copy.deepcopy(net)
    assert reestimate_batchnorm(net, batches()) == 2
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert (net[1].momentum, net[4].momentum) == (0.3, 0.1)
    for name, value in net.state_dict().items():
        same = torch.equal(value, before.state_dict()[name])
        assert same != ("running" in name or "num_batches" in name), name


def test_it_undoes_a_change_of_scale(net):
    """Twice the weights in front of a BatchNorm must make no difference after re-estimation."""
    data = batches()
    doubled = copy.deepcopy(net)
    with torch.no_grad():
        doubled[0].weight.mul_(2)
        doubled[0].bias.mul_(2)
    for model in (net, doubled):
        reestimate_batchnorm(model, data)
        model.eval()
    torch.testing.assert_close(net(data[0]), doubled(data[0]), rtol=1e-3, atol=1e-3)


def test_a_model_without_batchnorm_is_not_run():
    def never():
        raise AssertionError("it was run")
        yield

    assert reestimate_batchnorm(nn.Linear(2, 2), never()) == 0


def test_modes_and_momenta_are_restored_after_an_error(net):
    net.train()
    with pytest.raises(RuntimeError):
        reestimate_batchnorm(net, [torch.zeros(1, 3, 3, 3)])
    assert net.training
    assert net[1].momentum == 0.3
