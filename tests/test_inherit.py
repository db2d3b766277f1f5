"""What a trial takes over from another: all that is the same in both plans, and nothing else."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ranksearch.compress import compress
from ranksearch.evaluate import evaluate
from ranksearch.inherit import different_layers, inherit
from ranksearch.outbox import Outbox
from ranksearch.records import FinetuneConfig, LayerChoice, Plan, TrialState, key_of
from ranksearch.trial import restored, run, start, train
from ranksearch.workbench import Workbench
from tests.study.conftest import measurement
from tests.test_trial import CPU, PLAN, spec

CHANGED = Plan({**PLAN, "conv2": LayerChoice(method="tucker2", ranks=(4, 4))})
FEWER = Plan({"conv1": PLAN["conv1"]})
MORE = Plan({**PLAN, "stem": LayerChoice(method="channel_svd", ranks=(4,))})


@pytest.fixture
def bench(task, tmp_path) -> Workbench:
    return Workbench(task, CPU, outbox=Outbox(tmp_path))


def trained(bench):
    return train(start(spec(), bench), spec(), bench).model.state_dict()


def same(a, b, names) -> bool:
    return all(torch.equal(a[name], b[name]) for name in names)


def test_with_an_equal_plan_it_is_the_parent_s_model(bench):
    parent, child = trained(bench), bench.compress(PLAN)
    assert not same(parent, child.state_dict(), ["head.weight"])
    inherit(child, parent, PLAN, PLAN)
    assert same(parent, child.state_dict(), parent)


@pytest.mark.parametrize(
    ("plan", "changed"), [(CHANGED, "conv2"), (FEWER, "conv2"), (MORE, "stem")], ids=["changed", "dense", "factorized"]
)
def test_a_changed_layer_comes_from_the_dense_model_and_all_else_from_the_parent(bench, plan, changed):
    assert different_layers(PLAN, plan) == {changed}
    parent, child = trained(bench), bench.compress(plan)
    fresh = {name: value.clone() for name, value in child.state_dict().items()}
    inherit(child, parent, PLAN, plan)
    found = child.state_dict()
    own = [name for name in found if name.startswith(f"{changed}.")]
    assert own
    assert same(found, fresh, own)
    assert same(found, parent, found.keys() - set(own))


def test_a_layer_s_name_that_begins_another_s_is_not_taken_for_it():
    def net():
        return nn.ModuleDict({name: nn.Linear(8, 8) for name in ("layer1", "layer10")})

    plan = Plan({"layer1": LayerChoice(method="svd", ranks=(2,))})
    parent, child = net(), compress(net(), plan)
    inherit(child, parent.state_dict(), Plan(), plan)
    assert torch.equal(child["layer10"].weight, parent["layer10"].weight)


def test_attention_that_is_unpacked_in_one_of_them_keeps_the_dense_projections():
    net = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    plan = Plan({"self_attn.q_proj": LayerChoice(method="svd", ranks=(4,))})
    parent, child = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), compress(net, plan)
    inherit(child, parent.state_dict(), Plan(), plan)
    assert torch.equal(child.linear1.weight, parent.linear1.weight)
    assert torch.equal(child.self_attn.v_proj.weight, net.self_attn.in_proj_weight[32:])


def test_a_child_starts_from_its_parent_and_is_made_again_from_its_lineage(bench, task, tmp_path):
    parent = spec(inherit=True)
    assert run(parent, bench, measurement(0.5)).state is TrialState.COMPLETE
    child = replace(parent, plan=CHANGED, parent=key_of(parent))
    result = run(child, bench, measurement(0.5), None, [parent])
    assert result.state is TrialState.COMPLETE, result.reason
    grandchild = replace(parent, plan=MORE, parent=key_of(child))
    run(grandchild, bench, measurement(0.5), None, [parent, child])
    kept = bench.outbox.weights(key_of(grandchild))
    bench.outbox.keep_weights(set())
    elsewhere = Workbench(task, CPU)  # a host that has none of the weights
    again = restored(elsewhere, [parent, child, grandchild]).state_dict()
    assert same(again, kept, kept)
    model = restored(elsewhere, [parent, child])
    assert evaluate(model, task.validation, task.metric, device=CPU) == result.score
    alone = run(replace(child, parent=None), bench, measurement(0.5))
    assert alone.oneshot != result.oneshot


def test_inheriting_is_a_recipe_of_its_own_and_its_absence_changes_no_name():
    assert "inherit" not in FinetuneConfig().to_json()
    assert key_of(FinetuneConfig()) != key_of(FinetuneConfig(inherit=True))
    assert FinetuneConfig.from_json(FinetuneConfig(inherit=True).to_json()).inherit
    with pytest.raises(ValueError, match="false where init is 'random'"):
        FinetuneConfig(inherit=True, init="random")
