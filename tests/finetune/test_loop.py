"""Fine-tuning: the same batches every time, the optimizer that was asked for, an end when the loss is not finite."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ranksearch.errors import NonFiniteError
from ranksearch.finetune import finetune, fixed_batches, loop
from ranksearch.records import FinetuneConfig

CPU = torch.device("cpu")
CONFIG = FinetuneConfig(precision="float32", layout="contiguous", threads=1)


def config(**changes) -> FinetuneConfig:
    return replace(CONFIG, **changes)


def test_batches_are_the_same_for_the_same_seed_and_others_for_another(task):
    first, again, other = (list(fixed_batches(task, task.model, CONFIG, seed, CPU)) for seed in (1, 1, 2))
    assert len(first) == CONFIG.num_steps(len(task.train))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.teacher, b.teacher)
        assert not torch.equal(a.inputs, c.inputs)


def test_an_epoch_sees_every_example_once(task):
    steps = len(task.train) // 64
    batches = list(fixed_batches(task, None, config(steps=2 * steps), 0, CPU))
    for epoch in (batches[:steps], batches[steps:]):
        seen = torch.cat([b.inputs.flatten(1) for b in epoch])
        assert len(torch.unique(seen, dim=0)) == len(task.train)
    assert not torch.equal(batches[0].inputs, batches[steps].inputs)


def test_the_teacher_is_the_dense_model(task):
    (batch,) = fixed_batches(task, task.model, config(steps=1), 0, CPU)
    torch.testing.assert_close(batch.teacher, task.model(batch.inputs).detach())


def reference(model: nn.Module, batches, cfg: FinetuneConfig) -> nn.Module:
    """The same training written out: SGD with momentum and a linear schedule, by hand."""
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    model.train()
    for step, batch in enumerate(batches):
        outputs, t = model(batch.inputs), cfg.temperature
        teacher = F.softmax(batch.teacher / t, 1)
        taught = (teacher * (teacher.log() - F.log_softmax(outputs / t, 1))).sum(1).mean() * t * t
        loss = cfg.distillation * taught + (1 - cfg.distillation) * F.cross_entropy(outputs, batch.targets)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        rate = cfg.learning_rate * (1 - step / len(batches))
        with torch.no_grad():
            for (name, p), g in zip(model.named_parameters(), gradients, strict=True):
                velocity[name] = cfg.momentum * velocity[name] + g + cfg.weight_decay * p
                p.sub_(rate * velocity[name])
    return model


@pytest.mark.parametrize("distillation", [0.0, 0.4, 1.0])
def test_it_is_sgd_with_momentum_distilling_the_teacher(task, distillation):
    cfg = config(steps=5, weight_decay=1e-3, distillation=distillation)
    batches = list(fixed_batches(task, task.model, cfg, 0, CPU))
    ours, theirs = copy.deepcopy(task.model), copy.deepcopy(task.model)
    for model in (ours, theirs):
        nn.init.normal_(model.conv1.weight, std=0.1)
    theirs.conv1.weight.data.copy_(ours.conv1.weight)
    finetune(ours, batches, task, cfg, CPU)
    reference(theirs, batches, cfg)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def stepped(task, cfg: FinetuneConfig, num: int) -> list[torch.Tensor]:
    """The parameters after so many steps."""
    model = copy.deepcopy(task.model)
    finetune(model, list(fixed_batches(task, task.model, cfg, 0, CPU))[:num], task, cfg, CPU)
    return [p.detach().clone() for p in model.parameters()]


def gradients(task, cfg: FinetuneConfig, at: list[torch.Tensor], batch) -> list[torch.Tensor]:
    model = copy.deepcopy(task.model).train()
    for parameter, value in zip(model.parameters(), at, strict=True):
        parameter.data.copy_(value)
    return list(torch.autograd.grad(F.cross_entropy(model(batch.inputs), batch.targets), list(model.parameters())))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_it_is_adam_with_its_decay_in_the_gradient_or_beside_it(task, optimizer):
    cfg = config(
        steps=3, optimizer=optimizer, learning_rate=1e-3, weight_decay=0.1, distillation=0.0, schedule="cosine"
    )
    batches = list(fixed_batches(task, None, cfg, 0, CPU))
    values = [p.detach().clone() for p in task.model.parameters()]
    first, second = ([torch.zeros_like(v) for v in values] for _ in range(2))
    for step, batch in enumerate(batches):
        rate = 1e-3 * (1 + math.cos(math.pi * step / 3)) / 2
        found = gradients(task, cfg, values, batch)
        for i, (w, gradient) in enumerate(zip(values, found, strict=True)):
            g = gradient + 0.1 * w if optimizer == "adam" else gradient
            first[i], second[i] = 0.9 * first[i] + 0.1 * g, 0.999 * second[i] + 0.001 * g * g
            corrected = first[i] / (1 - 0.9 ** (step + 1)), second[i] / (1 - 0.999 ** (step + 1))
            decayed = w if optimizer == "adam" else w * (1 - rate * 0.1)
            values[i] = decayed - rate * corrected[0] / (corrected[1].sqrt() + 1e-8)
    for ours, theirs in zip(stepped(task, cfg, 3), values, strict=True):
        # where a gradient is nearly nothing Adam's step is its sign, which is rounding's
        assert ((ours - theirs).abs() < 1e-5).double().mean() > 0.99


def test_the_average_of_the_weights_is_what_remains(task):
    cfg = config(steps=4, schedule="constant", distillation=0.0)
    average, *later = (stepped(task, cfg, num) for num in (1, 2, 3, 4))
    for weights in later:
        average = [0.7 * a + 0.3 * w for a, w in zip(average, weights, strict=True)]
    for ours, theirs, last in zip(stepped(task, replace(cfg, ema=0.7), 4), average, later[-1], strict=True):
        torch.testing.assert_close(ours, theirs)
        assert not torch.equal(ours, last)


def test_seconds_end_it_and_lower_the_rate_on_the_way(task, monkeypatch):
    seconds = iter(range(100))
    monkeypatch.setattr(loop, "perf_counter", lambda: next(seconds))
    rates = []
    monkeypatch.setattr(loop, "learning_rate", lambda cfg, progress: rates.append(progress) or 1e-3)
    cfg = config(steps=0, seconds=5.0)
    finetune(copy.deepcopy(task.model), fixed_batches(task, task.model, cfg, 0, CPU), task, cfg, CPU)
    assert rates == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_frozen_parameters_stay(task):
    model = copy.deepcopy(task.model)
    model.conv1.requires_grad_(False)
    cfg = config(steps=2, ema=0.5, weight_decay=0.1)
    finetune(model, fixed_batches(task, task.model, cfg, 0, CPU), task, cfg, CPU)
    assert torch.equal(model.conv1.weight, task.model.conv1.weight)
    assert not torch.equal(model.conv2.weight, task.model.conv2.weight)


def test_training_helps_a_damaged_model(task):
    cfg = config(steps=20)
    damaged = copy.deepcopy(task.model)
    nn.init.kaiming_normal_(damaged.conv1.weight)
    batches = list(fixed_batches(task, task.model, cfg, 0, CPU))

    def loss() -> float:
        with torch.no_grad():
            return float(
                F.cross_entropy(damaged(task.validation.batch(range(300))[0]), task.validation.batch(range(300))[1])
            )

    before = loss()
    finetune(damaged, batches, task, cfg, CPU)
    assert not damaged.training
    assert loss() < 0.8 * before


def test_a_loss_that_is_not_finite_ends_it_with_the_step(task):
    cfg = config(steps=5, learning_rate=1e12, momentum=0.0)
    with pytest.raises(NonFiniteError, match=r"step [2-5]"):
        finetune(copy.deepcopy(task.model), list(fixed_batches(task, task.model, cfg, 0, CPU)), task, cfg, CPU)
