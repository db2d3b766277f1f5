"""From scratch: nothing of the trained model is left."""

import torch
from torch import nn

from ranksearch.compress import compress
from ranksearch.finetune import from_scratch
from ranksearch.records import LayerChoice, Plan

PLAN = Plan(
    {"conv1": LayerChoice(method="spatial_svd", ranks=(8,)), "conv2": LayerChoice(method="linearconv", ranks=(16,))}
)


def fresh(task, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return from_scratch(compress(task.model, PLAN, init="random"))


def test_no_number_that_was_trained_is_left(task):
    trained, model = compress(task.model, PLAN), fresh(task, 0)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and name != "conv2.bias":
            assert not torch.equal(value, trained.state_dict()[name]), name
    assert model.norm.running_var.eq(1).all()


def test_the_seed_decides(task):
    a, b, c = (fresh(task, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["stem.weight"], c["stem.weight"])


def test_attention_is_reset_too():
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    nn.init.zeros_(model[0].in_proj_weight)
    assert from_scratch(model)[0].in_proj_weight.ne(0).any()
