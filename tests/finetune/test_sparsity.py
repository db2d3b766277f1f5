"""The sparse variant's coefficients: all at first, ever fewer, as many as planned in the end."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from ranksearch.compress import compress
from ranksearch.errors import NonFiniteError
from ranksearch.factorize.linearconv_layer import LinearConvLayer, SparseCoefficients
from ranksearch.finetune import finetune, fixed_batches, from_scratch, loop
from ranksearch.finetune.average import Average
from ranksearch.finetune.sparsity import Thinning
from ranksearch.layers import find_layers
from ranksearch.records import FinetuneConfig, LayerChoice, Plan
from ranksearch.tasks import Task
from ranksearch.tasks.classification import cross_entropy
from ranksearch.tasks.metrics import accuracy
from ranksearch.tasks.split import ArraySplit

CPU = torch.device("cpu")
CONFIG = FinetuneConfig(
    steps=10, threads=1, precision="float32", layout="contiguous", distillation=0.0, batch_size=8, sparsity_until=0.6
)
PLAN = Plan({
    "conv": LayerChoice(method="linearconv_sparse", ranks=(5, 7)),
    "groups": LayerChoice(method="linearconv_sparse", ranks=(4, 5)),
    "point": LayerChoice(method="linearconv", ranks=(5,)),
    "head": LayerChoice(method="svd", ranks=(3,)),
    "out": LayerChoice(method="linearconv_sparse", ranks=(8, 3)),
})  # fmt: skip
SIZES = {"conv": (1, 3, 5, 7), "groups": (2, 4, 4, 5)}  # groups, others, primary, nonzeros


class Net(nn.Module):
    """`out` has nothing but primary filters, and so no coefficients."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.groups = nn.Conv2d(8, 16, 3, groups=2, stride=2, padding=1, bias=False)
        self.point = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 16)
        self.out = nn.Linear(16, 8)

    def forward(self, x):
        x = self.point(self.groups(self.norm(self.conv(x)).relu()).relu()).relu()
        return self.out(self.head(x.mean((2, 3))).relu())


@pytest.fixture(scope="module")
def task() -> Task:
    torch.manual_seed(0)
    split = ArraySplit(torch.randn(80, 2, 6, 6, dtype=torch.float64), torch.randint(8, (80,)))
    return Task(
        model=Net().double(), train=split, calibration=split, validation=split, loss=cross_entropy, metric=accuracy,
        metric_name="accuracy", example_input=split.batch([0])[0], model_name="net", data_name="noise",
    )  # fmt: skip


def thinning(task: Task, small: nn.Module, init: str = "decompose") -> Thinning:
    return Thinning(small, PLAN, find_layers(task.model, task.example_input), task.model, until=0.5, init=init)


def trained(small: nn.Module, task: Task, config: FinetuneConfig, **changes) -> nn.Module:
    small = copy.deepcopy(small)
    batches = changes.pop("batches", None) or fixed_batches(task, None, config, 1, CPU)
    known = {"plan": PLAN, "layers": find_layers(task.model, task.example_input), "dense": task.model}
    finetune(small, batches, task, config, CPU, **known | changes)
    return small


def outputs(model: nn.Module, task: Task) -> torch.Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(task.train.batch(range(16))[0])


def masks(model: nn.Module) -> dict[str, torch.Tensor]:
    """Layer -> which of its coefficients are kept, of a twin or of a compressed model."""
    layers = {name: m.coefficients for name, m in model.named_modules() if isinstance(m, LinearConvLayer)}
    return {name: c.kept.clone() for name, c in layers.items() if hasattr(c, "kept")}


def assert_same(a: nn.Module, b: nn.Module) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for (name, ours), theirs in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_it_begins_with_the_closest_weights_of_so_many_primary_filters(task):
    twin = thinning(task, compress(task.model, PLAN))
    for name, (groups, _, primary, _) in SIZES.items():
        dense = task.model.get_submodule(name).weight.detach()
        for ours, theirs in zip(
            twin.model.get_submodule(name).dense_weight().chunk(groups), dense.chunk(groups), strict=True
        ):
            left, values, right = torch.linalg.svd(theirs.flatten(1), full_matrices=False)
            closest = (left[:, :primary] * values[:primary]) @ right[:primary]
            torch.testing.assert_close(ours.flatten(1), closest)
    others = replace_choices({name: LayerChoice(method="linearconv", ranks=(s[2],)) for name, s in SIZES.items()})
    torch.testing.assert_close(outputs(twin.model, task), outputs(compress(task.model, others), task))


def replace_choices(choices: dict[str, LayerChoice]) -> Plan:
    return Plan(dict(PLAN) | choices)


def test_layers_of_other_methods_begin_as_they_are(task):
    small = compress(task.model, PLAN)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(1.5)
    small.norm.running_mean.add_(1)
    before = copy.deepcopy(small)
    twin = thinning(task, small).model
    for name in ("norm", "point", "head", "out"):
        assert_same(twin.get_submodule(name), before.get_submodule(name))
    assert_same(small, before)
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in small.parameters()}


def test_the_smallest_contributions_go_group_by_group(task):
    twin = thinning(task, compress(task.model, PLAN))
    with torch.no_grad():
        twin.model.conv.primary.mul_(torch.tensor([1e2, 1, 1e4, 1e-2, 1])[:, None, None, None])
    assert twin.drop(0.3)
    for name, (groups, others, primary, nonzeros) in SIZES.items():
        layer = twin.model.get_submodule(name)
        count = nonzeros + int((others * primary - nonzeros) * 0.4**3)
        filters = layer.primary.detach().reshape(groups, primary, -1)
        for group in range(groups):
            added = torch.stack([
                (a * filters[group, p]).norm()
                for row in layer.coefficients.values[group].detach()
                for p, a in enumerate(row)
            ])  # fmt: skip
            kept = layer.coefficients.kept[group].flatten()
            assert kept.sum() == count
            assert added[kept].min() >= added[~kept].max()


def test_what_is_gone_does_not_come_back_however_large_it_is(task):
    twin = thinning(task, compress(task.model, PLAN))
    assert twin.drop(0.1)
    before = masks(twin.model)
    with torch.no_grad():
        for name, kept in before.items():
            twin.model.get_submodule(name).coefficients.values[~kept] = 1e3
    assert twin.drop(0.2)
    assert not any((kept & ~before[name]).any() for name, kept in masks(twin.model).items())


def test_what_is_written_is_the_twins_function(task):
    small = compress(task.model, PLAN)
    twin = thinning(task, small)
    with torch.no_grad():
        for parameter in twin.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    twin.drop(1.0)
    expected = outputs(twin.model, task)
    twin.write()
    torch.testing.assert_close(outputs(small, task), expected)
    for name in SIZES:
        assert isinstance(small.get_submodule(name).coefficients, SparseCoefficients)


@pytest.mark.parametrize("until", [0.05, 0.65, 1.0])
def test_ever_fewer_remain_and_in_the_end_those_of_the_plan(task, monkeypatch, until):
    seen, begun = [], []
    drop, begin_again = Thinning.drop, loop.Watch.begin_again

    def seeing(self, progress):
        went = drop(self, progress)
        seen.append((progress, masks(self.model)))
        return went

    monkeypatch.setattr(Thinning, "drop", seeing)
    monkeypatch.setattr(loop.Watch, "begin_again", lambda self: begun.append(1) or begin_again(self))
    small = trained(compress(task.model, PLAN), task, replace(CONFIG, sparsity_until=until))
    *steps, (_, last) = seen  # the last is on writing
    assert [progress for progress, _ in steps] == [step / 10 for step in range(1, 11)]
    changed = set()
    for name, (groups, others, primary, nonzeros) in SIZES.items():
        before = torch.ones(groups, others, primary, dtype=torch.bool)
        for progress, found in steps:
            rest = max(0.0, 1 - progress / until) ** 3
            count = nonzeros + int((others * primary - nonzeros) * rest)
            assert found[name].sum((1, 2)).tolist() == [count] * groups
            assert not (found[name] & ~before).any()
            changed |= set() if torch.equal(found[name], before) else {progress}
            before = found[name]
        assert torch.equal(last[name], before)
        assert torch.equal(masks(small)[name], before)
        assert len(small.get_submodule(name).coefficients.values) == groups * nonzeros
    assert len(begun) == len(changed) >= (1 if until == 0.05 else 3)


def test_the_trained_model_has_the_plans_form(task):
    like = compress(task.model, PLAN)
    small = trained(like, task, CONFIG)
    shapes = [{k: (v.shape, v.dtype) for k, v in m.state_dict().items()} for m in (small, like)]
    assert shapes[0] == shapes[1]
    assert not small.training


def test_cut_short_it_still_has_the_plans_count(task):
    batches = list(fixed_batches(task, None, CONFIG, 1, CPU))[:2]
    small = trained(compress(task.model, PLAN), task, CONFIG, batches=batches)
    assert {name: int(mask.sum()) for name, mask in masks(small).items()} == {"conv": 7, "groups": 10}


def test_without_it_nothing_is_other_than_before(task):
    small, config = compress(task.model, PLAN), replace(CONFIG, sparsity_until=0.0)
    ours = trained(small, task, config)
    assert_same(ours, trained(small, task, config, plan=None, layers=(), dense=None))
    assert all(torch.equal(mask, masks(small)[name]) for name, mask in masks(ours).items())
    assert not torch.equal(outputs(trained(small, task, CONFIG), task), outputs(ours, task))


def test_without_steps_nothing_goes(task):
    small = compress(task.model, PLAN)
    assert_same(trained(small, task, replace(CONFIG, steps=0)), small)


def test_the_average_of_the_weights_is_what_is_written(task, monkeypatch):
    made = []

    class Kept(Average):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(loop, "Average", Kept)
    config = replace(CONFIG, ema=0.9, schedule="constant")
    small = trained(compress(task.model, PLAN), task, config)
    (average,) = made
    averaged = {tuple(value.shape): value for value in average.values}
    kept = masks(small)["groups"]
    assert torch.equal(small.groups.coefficients.values, averaged[2, 4, 4][kept])
    assert torch.equal(small.groups.primary, averaged[8, 4, 3, 3])
    last = trained(compress(task.model, PLAN), task, replace(config, ema=0.0))
    assert not torch.allclose(small.groups.primary, last.groups.primary)


def test_from_scratch_it_begins_with_fresh_numbers(task):
    config = replace(CONFIG, init="random")
    small = from_scratch(compress(task.model, PLAN, init="random"))
    torch.manual_seed(1)
    twin = thinning(task, small, "random")
    closest = thinning(task, small)
    assert not torch.allclose(twin.model.conv.primary, closest.model.conv.primary)
    assert int(twin.model.conv.coefficients.kept.sum()) == 15
    assert {n: int(m.sum()) for n, m in masks(trained(small, task, config)).items()} == {"conv": 7, "groups": 10}


def test_a_training_that_fails_leaves_the_compressed_model_in_its_form(task):
    small = compress(task.model, PLAN)
    batches = list(fixed_batches(task, None, CONFIG, 1, CPU))
    batches[4].inputs.fill_(float("nan"))
    layers = find_layers(task.model, task.example_input)
    with pytest.raises(NonFiniteError, match="step 5"):
        finetune(small, batches, task, CONFIG, CPU, plan=PLAN, layers=layers, dense=task.model)
    assert_same(small, compress(task.model, PLAN))


class Killed(BaseException):
    pass


def until(batches, step: int):
    for number, batch in enumerate(batches):
        if number == step:
            raise Killed
        yield batch


@pytest.mark.parametrize("init", ["decompose", "random"])
@pytest.mark.parametrize("stops", [(2,), (1, 3, 8)], ids=str)
def test_killed_at_a_step_it_ends_as_if_it_had_not_been(task, tmp_path, monkeypatch, init, stops):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    config = replace(CONFIG, init=init, optimizer="adamw", learning_rate=1e-2, weight_decay=0.1, ema=0.5)
    small = compress(task.model, PLAN)
    torch.manual_seed(3)
    expected = trained(small, task, config)
    torch.manual_seed(3)
    for step in stops:
        batches = until(fixed_batches(task, None, config, 1, CPU), step)
        with pytest.raises(Killed):
            trained(small, task, config, batches=batches, checkpoint=tmp_path / "training")
    assert_same(trained(small, task, config, checkpoint=tmp_path / "training"), expected)
