"""Fine-tuning: the same batches every time, the optimizer that was asked for, an end when the loss is not finite."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ranksearch.errors import NonFiniteError
from ranksearch.finetune import finetune, fixed_batches
from ranksearch.records import FinetuneConfig

CPU = torch.device("cpu")
CONFIG = FinetuneConfig(precision="float32", layout="contiguous", threads=1)


def config(**changes) -> FinetuneConfig:
    return FinetuneConfig.from_json(CONFIG.to_json() | changes)


def test_batches_are_the_same_for_the_same_seed_and_others_for_another(task):
    first, again, other = (list(fixed_batches(task, task.model, CONFIG, seed, CPU)) for seed in (1, 1, 2))
    assert len(first) == CONFIG.steps
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
        rate = cfg.learning_rate * (1 - step / cfg.steps)
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
    with pytest.raises(NonFiniteError, match=r"step [2-5] of 5"):
        finetune(copy.deepcopy(task.model), list(fixed_batches(task, task.model, cfg, 0, CPU)), task, cfg, CPU)
