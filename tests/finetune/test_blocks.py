"""Blocks of the compressed net are drawn to what the dense net's give."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from ranksearch.compress import compress
from ranksearch.errors import ConfigError
from ranksearch.finetune import finetune, fixed_batches
from ranksearch.finetune.blocks import BlockTeacher, outputs_of
from ranksearch.layers import find_layers
from ranksearch.nets import resnet20
from ranksearch.records import FinetuneConfig, LayerChoice, MeasureConfig, Plan, TrialSpec
from ranksearch.trial import train
from ranksearch.workbench import Workbench

CPU = torch.device("cpu")
CONFIG = FinetuneConfig(steps=4, threads=1, precision="float32", layout="contiguous", batch_size=16, momentum=0.0)
PLAN = Plan({name: LayerChoice(method="channel_svd", ranks=(8,)) for name in ("conv1", "conv2")})


def teacher(dense: nn.Module, *replaced: str) -> BlockTeacher:
    return BlockTeacher(dense, replaced, "float32", CPU)


def distance(model: nn.Module, of: BlockTeacher, inputs: torch.Tensor) -> torch.Tensor:
    with outputs_of(model, of.blocks) as found:
        model(inputs)
    return of.distance(found, inputs)


def pair() -> tuple[nn.Module, nn.Module]:
    """Two nets of the same form: stem, two blocks, classifier."""
    torch.manual_seed(0)
    nets = []
    for _ in range(2):
        stem, head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        blocks = [nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)) for _ in range(2)]
        nets.append(nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).double().eval())
    return nets[0], nets[1]


@pytest.mark.parametrize(
    ("replaced", "blocks"),
    [(["1.0"], [1]), (["1.0", "2.0"], [1, 2]), (["0", "2.0", "5"], [0, 2, 5])],
)
def test_it_is_the_mean_over_blocks_of_the_relative_squared_distance(replaced, blocks):
    ours, theirs = pair()
    x = torch.randn(5, 1, 9, 9, dtype=torch.float64)
    expected = []
    for block in blocks:
        a, b = ours[: block + 1](x).detach().numpy(), theirs[: block + 1](x).detach().numpy()
        expected.append(((a - b) ** 2).mean() / (b**2).mean())
    of = teacher(theirs, *replaced)
    assert of.blocks == [str(block) for block in blocks]
    assert distance(ours, of, x).item() == pytest.approx(sum(expected) / len(expected))
    assert distance(theirs, of, x).item() == 0


class Single(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.body = inner

    def forward(self, x):
        return self.body(x)


class Listed(nn.Module):
    """Blocks in lists, one of which is used twice, another gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Sequential(nn.Conv2d(1, 1, 1)), nn.ModuleList([nn.Conv2d(1, 1, 1)])])
        self.twice = nn.LSTM(4, 4, batch_first=True)
        self.named = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4)), "ab": nn.Linear(4, 4)})

    def forward(self, x):
        x = self.stages[0](self.stages[0](x))
        x = self.stages[1][0](x)
        x, _ = self.twice(x[:, 0])
        return self.named["ab"](self.named["a"](x))


def test_an_only_child_is_opened_where_it_is_a_sequential():
    net = pair()[0]
    assert teacher(Single(net), "body.1.0").blocks == ["body.1"]
    assert teacher(Single(Single(net)), "body.body.1.0").blocks == ["body"]
    assert teacher(nn.Sequential(net), "0.1.0").blocks == ["0.1"]
    assert teacher(nn.Sequential(net, nn.ReLU()), "0.1.0").blocks == ["0"]


def test_lists_are_opened_and_names_are_whole():
    assert teacher(Listed(), "stages.0.0", "stages.1.0", "named.ab").blocks == ["stages.0", "stages.1.0", "named.ab"]


def test_the_first_call_of_a_block_counts_and_what_is_no_tensor_does_not():
    model, x = Listed(), torch.randn(2, 1, 3, 4)
    with outputs_of(model, ["stages.0", "twice"]) as found:
        model(x)
    assert list(found) == ["stages.0"]
    torch.testing.assert_close(found["stages.0"], model.stages[0](x))


def test_a_model_without_blocks_is_refused_with_what_to_do():
    model = Listed()
    with pytest.raises(ConfigError, match=r"no child of Listed .* block_distillation .* set it to 0"):
        distance(model, teacher(model, "twice"), torch.randn(2, 1, 3, 4))


def trained(task, small: nn.Module, config: FinetuneConfig, num: int | None = None) -> nn.Module:
    small = copy.deepcopy(small)
    batches = list(fixed_batches(task, task.model, config, 0, CPU))[:num]
    layers = find_layers(task.model, task.example_input)
    finetune(small, batches, task, config, CPU, plan=PLAN, layers=layers, dense=task.model)
    return small


def test_a_step_adds_its_weighted_gradient(task):
    small, of = compress(task.model, PLAN), teacher(task.model, *PLAN)
    (batch,) = fixed_batches(task, None, replace(CONFIG, steps=1), 0, CPU)
    start = copy.deepcopy(small).train()
    gradients = torch.autograd.grad(distance(start, of, batch.inputs), list(start.parameters()), allow_unused=True)
    with_it = trained(task, small, replace(CONFIG, block_distillation=0.5), 1)
    without = trained(task, small, CONFIG, 1)
    rate = 0.5 * CONFIG.learning_rate
    for ours, theirs, gradient in zip(with_it.parameters(), without.parameters(), gradients, strict=True):
        torch.testing.assert_close(ours, theirs if gradient is None else theirs - rate * gradient)
    assert not torch.allclose(with_it.conv1[0].weight, without.conv1[0].weight)


def test_blocks_come_closer_than_without(task):
    small, of = compress(task.model, PLAN), teacher(task.model, *PLAN)
    inputs, _ = task.validation.batch(range(64))
    config = replace(CONFIG, steps=20, momentum=0.9)
    near, far = (trained(task, small, replace(config, block_distillation=w)) for w in (5.0, 0.0))
    with torch.no_grad():
        assert distance(near, of, inputs) < 0.9 * distance(far, of, inputs)


@pytest.mark.parametrize("how", [{"atcd": "project"}, {"reconstruction_steps": 0}])
def test_the_dense_model_stays_as_it_is(task, how):
    before = copy.deepcopy(task.model.state_dict())
    trained(task, compress(task.model, PLAN), replace(CONFIG, block_distillation=1.0, **how))
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert not task.model.training
    assert not any(module._forward_hooks for module in task.model.modules())


@pytest.mark.parametrize("change", [{"block_distillation": 1.0}, {"sparsity_until": 0.5}])
def test_a_trial_gives_what_is_needed(task, change):
    plan = Plan(dict.fromkeys(("conv1", "conv2"), LayerChoice(method="linearconv_sparse", ranks=(2, 20))))
    bench = Workbench(task, CPU)

    def weights(config: FinetuneConfig) -> list[torch.Tensor]:
        spec = TrialSpec(study="s", plan=plan, seed=0, finetune=config, measure=MeasureConfig())
        result = train(bench.compress(plan), spec, bench)
        assert result.score.value > result.oneshot.value  # else what was there before the training is kept
        return list(result.model.parameters())

    config = replace(CONFIG, steps=20)
    pairs = zip(weights(replace(config, **change)), weights(config), strict=True)
    assert not all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_hooks_go_when_the_pass_fails():
    model = pair()[0]
    with pytest.raises(RuntimeError), outputs_of(model, ["0", "1"]):
        model(torch.zeros(1, 7, 9, 9, dtype=torch.float64))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_residual_net_is_matched_block_by_block():
    net = resnet20(width=0.25)
    layers = find_layers(net, torch.zeros(1, 3, 32, 32))
    replaced = [layer.name for layer in layers if layer.name.endswith("conv2")]
    of = teacher(net.eval(), *replaced)
    assert of.blocks == [name.removesuffix(".conv2") for name in replaced]
    assert distance(net, of, torch.randn(2, 3, 32, 32)).item() == 0
