"""Layers learn what the dense ones made of their inputs, never to their harm."""

import copy

import pytest
import torch
from torch import nn

from ranksearch.compress import compress
from ranksearch.factorize import METHODS
from ranksearch.finetune import reconstruct, reconstruction
from ranksearch.layers import find_layers
from ranksearch.records import LayerChoice, Plan

PLAN = Plan(
    {
        "conv1": LayerChoice(method="channel_svd", ranks=(6,)),
        "conv2": LayerChoice(method="spatial_svd", ranks=(6,)),
        "head": LayerChoice(method="svd", ranks=(2,)),
    }
)


def inputs(task) -> list[torch.Tensor]:
    return [task.calibration.batch(range(start, start + 32))[0] for start in range(0, 128, 32)]


def reconstructed(task, plan: Plan = PLAN, steps: int = 40, batches=None) -> tuple[nn.Module, dict]:
    small = compress(task.model, plan)
    layers = find_layers(task.model, task.example_input)
    given = inputs(task) if batches is None else batches
    return small, reconstruct(small, task.model, plan, layers, given, steps=steps, seed=0)


def test_every_layer_comes_closer_in_the_order_of_the_forward_pass(task):
    _, errors = reconstructed(task)
    assert list(errors) == ["conv1", "conv2", "head"]
    for name, (before, after) in errors.items():
        assert 0 < after < 0.97 * before, name


def test_the_error_is_that_of_the_layer_on_what_enters_it(task):
    plan = Plan({"conv1": PLAN["conv1"]})  # nothing before it is replaced, and a norm before it sees the same batch
    small, errors = reconstructed(task, plan)
    dense = copy.deepcopy(task.model)
    entered: list[torch.Tensor] = []
    made: list[torch.Tensor] = []
    dense.conv1.register_forward_hook(lambda _m, _args, output: made.append(output))
    with torch.no_grad():
        for batch in inputs(task):
            dense(batch)
            x = torch.nn.functional.batch_norm(
                dense.stem(batch), None, None, dense.norm.weight, dense.norm.bias, training=True
            )
            entered.append(x.relu())
        y = torch.cat(made)
        for layer, found in ((compress(task.model, plan).conv1, errors["conv1"][0]), (small.conv1, errors["conv1"][1])):
            error = (layer(torch.cat(entered)) - y).norm() / y.norm()
            assert float(error) == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_reconstructed_never_to_its_harm(task, method):
    choices = {}
    for layer in find_layers(task.model, task.example_input):
        if layer.name != "stem" and METHODS[method].refuses(layer.shape) is None:
            ranks = tuple(max(1, most // 4) for most in METHODS[method].max_ranks(layer.shape))
            choices[layer.name] = LayerChoice(method=method, ranks=ranks)
    _, errors = reconstructed(task, Plan(choices), steps=3)
    assert set(errors) == set(choices)
    assert all(after <= before for before, after in errors.values())


def test_a_layer_that_gets_no_better_keeps_what_it_had(task, monkeypatch):
    monkeypatch.setattr(reconstruction, "LEARNING_RATE", 1e3)
    small, errors = reconstructed(task, steps=2)
    assert all(before == after for before, after in errors.values())
    for ours, theirs in zip(small.parameters(), compress(task.model, PLAN).parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_but_the_replaced_layers_changes(task):
    dense = copy.deepcopy(task.model)
    small, _ = reconstructed(task, steps=2)
    before = compress(task.model, PLAN)
    for name, value in before.state_dict().items():
        is_replaced = name.partition(".")[0] in PLAN
        assert torch.equal(value, small.state_dict()[name]) != is_replaced or name.endswith("bias"), name
    for ours, theirs in zip(dense.state_dict().values(), task.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(module.training for module in small.modules())
    assert all(m.track_running_stats for m in small.modules() if isinstance(m, nn.BatchNorm2d))
    assert not any(m._forward_pre_hooks for m in (*small.modules(), *task.model.modules()))


def test_the_same_seed_gives_the_same_weights(task):
    (a, _), (b, _) = reconstructed(task, steps=3), reconstructed(task, steps=3)
    for ours, theirs in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_it_keeps_is_bounded(task, monkeypatch):
    of_a_batch = 32 * (32 + 32) * 12 * 12 * 4
    monkeypatch.setattr(reconstruction, "KEEP_BYTES", 2 * of_a_batch)
    plan = Plan({"conv1": PLAN["conv1"]})
    given = inputs(task)
    kept, all_of_them, fewer = (reconstructed(task, plan, 3, given[:num])[0].conv1[0].weight for num in (2, 4, 1))
    assert torch.equal(kept, all_of_them)
    assert not torch.equal(kept, fewer)


def test_frozen_layers_stay(task):
    small = compress(task.model, PLAN).requires_grad_(False)
    layers = find_layers(task.model, task.example_input)
    errors = reconstruct(small, task.model, PLAN, layers, inputs(task), steps=2, seed=0)
    assert all(before == after for before, after in errors.values())
