"""Training composed weights: laws of the projection, and what it is at full rank."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from ranksearch.compress import compress, fold
from ranksearch.errors import NonFiniteError
from ranksearch.factorize import METHODS, LayerShape
from ranksearch.finetune import finetune, fixed_batches
from ranksearch.finetune.atcd import Composed
from ranksearch.layers import find_layers
from ranksearch.records import FinetuneConfig, LayerChoice, Plan
from ranksearch.tasks import Task
from ranksearch.tasks.classification import cross_entropy
from ranksearch.tasks.metrics import accuracy
from ranksearch.tasks.split import ArraySplit

CPU = torch.device("cpu")
CONFIG = FinetuneConfig(
    steps=4, threads=1, precision="float32", layout="contiguous", distillation=0.0, batch_size=8, atcd="project"
)


class Net(nn.Module):
    """A block as MobileNet has them, after a convolution and before a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.head = nn.Linear(16, 16)

    def forward(self, x):
        return self.head(self.block(self.norm(self.conv(x)).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def task() -> Task:
    torch.manual_seed(0)
    split = ArraySplit(torch.randn(64, 2, 6, 6, dtype=torch.float64), torch.randint(4, (64,)))
    return Task(
        model=Net().double(), train=split, calibration=split, validation=split, loss=cross_entropy, metric=accuracy,
        metric_name="accuracy", example_input=split.batch([0])[0], model_name="net", data_name="noise",
    )  # fmt: skip


def plan_for(task: Task, method: str, part: float) -> Plan:
    """Every layer that the method takes, at this part of its largest ranks."""
    part = part / 4 if method == "cp" and part < 1 else part  # whose ranks reach to the product of two sides
    choices = {}
    for name, layer in task.model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            shape = LayerShape.of(layer)
            if METHODS[method].refuses(shape) is None:
                ranks = tuple(max(1, int(part * most)) for most in METHODS[method].max_ranks(shape))
                choices[name] = LayerChoice(method=method, ranks=ranks)
    return Plan(choices)


def composed(task: Task, plan: Plan) -> Composed:
    return Composed(compress(task.model, plan), plan, find_layers(task.model, task.example_input))


def trained(model: nn.Module, task: Task, config: FinetuneConfig, plan: Plan | None = None) -> nn.Module:
    model = copy.deepcopy(model)
    layers = find_layers(task.model, task.example_input)
    finetune(model, fixed_batches(task, None, config, 1, CPU), task, config, CPU, plan=plan, layers=layers)
    return model


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x.double() - y.double()).norm() / (1 + y.double().norm())) for x, y in pairs)


# How far from itself a projected weight may be projected: decompositions that are no optimum do not come back to it.
INEXACT = {"cp": 0.25, "rank1": 0.05, "linearconv_lowrank": 0.2, "linearconv_sparse": 0.2}


@pytest.mark.parametrize("method", METHODS)
def test_a_projected_net_is_projected_to_itself(task, method):
    twin = composed(task, plan_for(task, method, 0.4))
    with torch.no_grad():
        for parameter in twin.dense.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double())
    away = copy.deepcopy(twin.dense)
    twin.project()
    once = copy.deepcopy(twin.dense)
    twin.project()
    assert distance(once, away) > 1e-3
    assert distance(twin.dense, once) <= INEXACT.get(method, 1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_is_the_projected_net_and_of_the_plans_size(task, method):
    plan = plan_for(task, method, 0.4)
    small = trained(compress(task.model, plan), task, replace(CONFIG, steps=2), plan)
    like = compress(task.model, plan)
    assert [p.shape for p in small.parameters()] == [p.shape for p in like.parameters()]
    assert distance(small, like) > 1e-4


def test_without_a_rate_the_function_stays(task):
    for method in ("channel_svd", "separable", "linearconv", "tt_conv"):
        plan = plan_for(task, method, 0.4)
        before = compress(task.model, plan)
        after = trained(before, task, replace(CONFIG, learning_rate=1e-30, momentum=0.0), plan)
        layers = find_layers(task.model, task.example_input)
        weights = [[p.detach() for p in fold(m, plan, layers).parameters()] for m in (before, after)]
        torch.testing.assert_close(*weights)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("method", ["channel_svd", "spatial_svd", "separable", "tucker2", "tt_conv", "linearconv"])
def test_at_full_rank_it_is_the_training_of_the_dense_model(task, method, momentum):
    config, plan = replace(CONFIG, momentum=momentum, weight_decay=1e-3), plan_for(task, method, 1.0)
    small = trained(compress(task.model, plan), task, config, plan)
    dense = trained(task.model, task, replace(config, atcd="none"))
    assert distance(dense, task.model) > 1e-3
    assert distance(fold(small, plan, find_layers(task.model, task.example_input)), dense) < 1e-9


def test_the_period_says_how_often_it_projects(task, monkeypatch):
    steps = []
    monkeypatch.setattr(Composed, "project", lambda self: steps.append(1))
    plan = plan_for(task, "channel_svd", 0.4)
    trained(compress(task.model, plan), task, replace(CONFIG, atcd_period=2, steps=5), plan)
    assert len(steps) == 2


def test_each_projection_changes_the_path(task):
    plan = plan_for(task, "channel_svd", 0.4)
    often, once = (trained(compress(task.model, plan), task, replace(CONFIG, atcd_period=p), plan) for p in (1, 4))
    assert distance(often, once) > 1e-6


def test_a_step_on_dense_weights_is_another_than_one_on_factors(task):
    plan = plan_for(task, "rank1", 0.1)
    small = compress(task.model, plan)
    on_factors = trained(small, task, replace(CONFIG, atcd="autograd"), plan)
    assert distance(on_factors, trained(small, task, replace(CONFIG, atcd="none"), plan)) == 0
    assert distance(on_factors, trained(small, task, CONFIG, plan)) > 1e-6


def test_gradients_of_factors_are_those_of_the_composed_weight_pulled_back():
    layer = nn.Conv2d(4, 5, 3, padding=1).double()
    method, shape = METHODS["rank1"], LayerShape.of(layer)
    small = method.build(shape, (2,), dtype=torch.float64)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    direct = torch.autograd.grad(small(x).square().sum(), list(small.parameters()))

    weight = method.weight_of(small, shape)
    leaf = weight.detach().requires_grad_()
    loss = functional.conv2d(x, leaf, method.bias_of(small), padding=1).square().sum()
    (of_weight,) = torch.autograd.grad(loss, leaf)
    factors = [p for name, p in small.named_parameters() if not name.endswith("bias")]
    pulled = torch.autograd.grad(weight, factors, of_weight)
    direct_of = dict(zip((n for n, _ in small.named_parameters()), direct, strict=True))
    found = [g for name, g in direct_of.items() if not name.endswith("bias")]
    torch.testing.assert_close(found, list(pulled))


def test_weights_that_are_not_finite_end_it_as_a_loss_would(task):
    twin = composed(task, plan_for(task, "channel_svd", 0.4))
    nn.init.constant_(twin.dense.block.weight, float("nan"))
    with pytest.raises(NonFiniteError, match="block"):
        twin.project()


def test_the_forward_that_was_chosen_stays(task):
    plan = plan_for(task, "tt_conv", 0.4)
    small = compress(task.model, plan)
    small.block.contracted = True
    assert trained(small, task, CONFIG, plan).block.contracted
