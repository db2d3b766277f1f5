"""LinearConv's regulariser is what numpy's correlations say, and acts when it should."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.compress import compress
from ranksearch.factorize import METHODS, LayerShape
from ranksearch.finetune import finetune, fixed_batches
from ranksearch.finetune.correlation import primary_correlation
from ranksearch.records import FinetuneConfig, LayerChoice, Plan

CPU = torch.device("cpu")
PLAN = Plan({"conv1": LayerChoice(method="linearconv", ranks=(16,))})


def built(method: str, ranks: tuple[int, ...], **layer) -> nn.Module:
    return METHODS[method].build(LayerShape.of(nn.Conv2d(8, 12, 3, **layer)), ranks, dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "ranks", "groups"),
    [
        ("linearconv", (5,), 1),
        ("linearconv", (3,), 2),
        ("linearconv_lowrank", (6, 2), 1),
        ("linearconv_sparse", (6, 9), 1),
    ],
)
def test_it_is_the_sum_of_numpys_correlations(method, ranks, groups):
    torch.manual_seed(0)
    model = nn.Sequential(built(method, ranks, groups=groups), nn.ReLU(), built(method, ranks, groups=groups))
    expected = 0.0
    for layer in (model[0], model[2]):
        for group in np.split(layer.primary.detach().numpy().reshape(groups * ranks[0], -1), groups):
            expected += np.abs(np.corrcoef(group) - np.eye(len(group))).sum()
    assert primary_correlation(model).item() == pytest.approx(expected)


def test_filters_that_do_not_vary_have_a_finite_gradient():
    layer = built("linearconv", (4,))
    nn.init.constant_(layer.primary, 2.0)
    primary_correlation(layer).backward()
    assert layer.primary.grad.isfinite().all()


def test_a_model_without_such_layers_has_none():
    assert primary_correlation(nn.Conv2d(2, 2, 3)) == 0


def test_it_is_felt_on_every_tenth_batch_only(task):
    config = FinetuneConfig(
        steps=3, learning_rate=1e-2, schedule="constant", momentum=0.0, threads=1, precision="float32"
    )
    small = compress(task.model, PLAN)
    batches = list(fixed_batches(task, task.model, config, 0, CPU))

    def after(config: FinetuneConfig, num: int) -> torch.Tensor:
        model = copy.deepcopy(small)
        finetune(model, batches[:num], task, config, CPU)
        return model.conv1.primary.detach()

    felt = replace(config, correlation_weight=0.01)
    start = copy.deepcopy(small)
    (gradient,) = torch.autograd.grad(primary_correlation(start), start.conv1.primary)
    torch.testing.assert_close(after(felt, 1), after(config, 1) - 1e-4 * gradient, rtol=1e-5, atol=1e-7)

    once, twice = (replace(felt, correlation_period=period) for period in (3, 2))
    assert torch.equal(after(once, 2), after(twice, 2))
    assert not torch.equal(after(once, 3), after(twice, 3))
