"""One trial: the same spec gives the same accuracy, the better model is kept, nothing a trial does escapes it."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from ranksearch.compress import compress
from ranksearch.evaluate import evaluate
from ranksearch.factorize import METHODS, LayerShape, Method
from ranksearch.outbox import Outbox
from ranksearch.records import (
    FinetuneConfig,
    LayerChoice,
    MeasureConfig,
    Plan,
    TrialResult,
    TrialSpec,
    TrialState,
    key_of,
)
from ranksearch.trial import run, train
from ranksearch.workbench import Workbench

CPU = torch.device("cpu")
FINETUNE = FinetuneConfig(steps=4, precision="float32", layout="contiguous", threads=1, calibration_examples=128)
MEASURE = MeasureConfig(batch_size=4, max_seconds=0.05, min_blocks=2, iterations_per_block=2)
PLAN = Plan(
    {"conv1": LayerChoice(method="spatial_svd", ranks=(8,)), "conv2": LayerChoice(method="tucker2", ranks=(8, 8))}
)


NARROW = Plan({name: LayerChoice(method="channel_svd", ranks=(1,)) for name in ("conv1", "conv2")})


def spec(plan: Plan = PLAN, **finetune) -> TrialSpec:
    return TrialSpec(study="s", plan=plan, seed=5, finetune=dataclasses.replace(FINETUNE, **finetune), measure=MEASURE)


@pytest.fixture
def bench(task, tmp_path) -> Workbench:
    return Workbench(task, CPU, outbox=Outbox(tmp_path))


def test_a_complete_trial_has_every_figure(bench):
    result = run(spec(), bench)
    assert result.state is TrialState.COMPLETE, result.reason
    missing = {"reason", "details", "expected"}
    assert {f.name for f in dataclasses.fields(result) if getattr(result, f.name) is None} <= missing
    assert result.parameters == sum(p.numel() for p in bench.compress(PLAN).parameters())
    assert {"compress", "measure", "recalibrate", "finetune", "evaluate"} <= set(result.seconds)
    assert TrialResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def rank_about_half(method: Method, shape: LayerShape) -> LayerChoice:
    return LayerChoice(method=method.name, ranks=tuple((most + 1) // 2 for most in method.max_ranks(shape)))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_searched_stored_and_loaded_again(bench, task, name):
    method = METHODS[name]
    layers = [layer for layer in bench.layers if layer.shape and method.refuses(layer.shape) is None]
    plan = Plan({layer.name: rank_about_half(method, layer.shape) for layer in layers if layer.name != "stem"})
    result = run(spec(plan), bench)
    assert result.state is TrialState.COMPLETE, result.reason
    assert result.parameters == sum(p.numel() for p in bench.compress(plan).parameters())
    model = compress(task.model, plan, init="random").eval()
    model.load_state_dict(bench.outbox.weights(result.key))
    assert evaluate(model, task.validation, task.metric, device=CPU) == result.score


def test_methods_mix_in_one_plan(bench):
    plan = Plan({
        "stem": LayerChoice(method="rank1", ranks=(2,)),
        "conv1": LayerChoice(method="tt_conv", ranks=(4, 8, 4)),
        "conv2": LayerChoice(method="linearconv", ranks=(16,)),
        "head": LayerChoice(method="svd", ranks=(2,)),
    })  # fmt: skip
    result = run(spec(plan), bench)
    assert result.state is TrialState.COMPLETE, result.reason


def test_the_same_spec_gives_the_same_model_in_a_fresh_bench(task):
    models = [train(b.compress(PLAN), spec(), b).model for b in (Workbench(task, CPU), Workbench(task, CPU))]
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name]), name


def test_a_trial_leaves_no_trace_in_the_next(bench):
    first = run(spec(), bench)
    run(spec(Plan({"conv1": LayerChoice(method="channel_svd", ranks=(3,))}), learning_rate=0.5), bench)
    torch.manual_seed(99)
    again = run(spec(), bench)
    assert again.score == first.score
    assert again.oneshot == first.oneshot


def test_the_dense_model_is_itself_and_as_fast_as_itself(bench, task):
    result = run(spec(Plan()), bench)
    assert result.score == evaluate(task.model, task.validation, task.metric, device=CPU)
    assert result.measurement.ratio_low < 1.15
    assert result.measurement.ratio_high > 0.87
    assert result.parameters == sum(p.numel() for p in task.model.parameters())


def test_the_better_of_re_estimated_and_fine_tuned_is_kept(bench, task):
    helped, ruined = run(spec(), bench), run(spec(learning_rate=8.0), bench)
    assert helped.score.value >= helped.oneshot.value
    assert ruined.score == ruined.oneshot == helped.oneshot
    model = bench.compress(PLAN)
    model.load_state_dict(bench.outbox.weights(ruined.key))
    assert evaluate(model, task.validation, task.metric, device=CPU) == ruined.score


def test_training_is_as_long_as_what_one_shot_loses_asks_for(bench):
    wide = Plan(
        {
            "conv1": LayerChoice(
                method="spatial_svd", ranks=METHODS["spatial_svd"].max_ranks(LayerShape.of(bench.dense.conv1))
            )
        }
    )
    untouched = run(spec(wide, allocation="by_loss"), bench)
    assert "finetune" not in untouched.seconds
    assert untouched.score == untouched.oneshot
    harsh = spec(NARROW, allocation="by_loss", learning_rate=0.002)
    fixed = harsh.finetune.allocated(bench.lost(run(harsh, bench).oneshot))
    assert fixed.steps > FINETUNE.steps
    by_loss, by_hand = (train(bench.compress(NARROW), dataclasses.replace(harsh, finetune=f), bench).model
                        for f in (harsh.finetune, fixed))  # fmt: skip
    for name, value in by_loss.state_dict().items():
        assert torch.equal(value, by_hand.state_dict()[name]), name


def test_weights_left_in_the_outbox_give_the_stored_accuracy(bench, task):
    result = run(spec(), bench)
    model = bench.compress(PLAN)
    model.load_state_dict(bench.outbox.weights(key_of(spec())))
    assert evaluate(model, task.validation, task.metric, device=CPU) == result.score


def test_a_diverging_fine_tune_keeps_the_re_estimated_model_and_says_so(bench):
    result = run(spec(learning_rate=1e18, momentum=0.0), bench)
    assert result.state is TrialState.COMPLETE
    assert result.score == result.oneshot
    assert "diverged" in result.reason


class Bad(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x):
        if self.how == "nan":
            return x * float("nan")
        raise {"raise": RuntimeError("first line\nsecond line"), "memory": MemoryError()}[self.how]


@pytest.mark.parametrize(
    ("how", "words"),
    [("nan", "NonFiniteError"), ("raise", "RuntimeError: first line second line"), ("memory", "MemoryError")],
)
def test_what_goes_wrong_in_a_trial_fails_it_alone(bench, monkeypatch, how, words):
    good = bench.compress

    def bad(plan, metrics=None):
        model = good(plan, metrics)
        model.norm1 = Bad(how)
        return model

    bench.compress = bad
    result = run(spec(), bench)
    assert result.state is TrialState.FAILED
    assert words in result.reason
    assert "\n" not in result.reason
    assert result.parameters, "what was known before the failure is kept"
    assert result.score is None
    bench.compress = good
    assert run(spec(), bench).state is TrialState.COMPLETE


def test_a_plan_with_an_impossible_rank_fails_with_the_reason(bench):
    result = run(spec(Plan({"conv1": LayerChoice(method="spatial_svd", ranks=(4000,))})), bench)
    assert result.state is TrialState.FAILED
    assert "4000" in result.reason


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_way_to_train_gives_a_working_model(bench, layout, precision):
    result = run(spec(layout=layout, precision=precision, distillation=0.5), bench)
    assert result.state is TrialState.COMPLETE, result.reason
    assert result.reason is None
    assert result.score.value > 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_trial_on_cuda_in_bfloat16_is_timed_by_events_and_repeats_itself(task):
    device = torch.device("cuda")
    results = [run(spec(precision="bfloat16"), Workbench(task, device)) for _ in range(2)]
    assert [r.state for r in results] == [TrialState.COMPLETE] * 2, results[0].reason
    assert results[0].score == results[1].score
    assert results[0].measurement.identity["device_model"] == torch.cuda.get_device_name()


@pytest.mark.parametrize(
    "strategy",
    [
        {"reconstruction_steps": 3},
        {"atcd": "project", "atcd_period": 2},
        {"ema": 0.5, "steps": 20, "optimizer": "adamw", "learning_rate": 5e-3, "schedule": "cosine"},
        {"steps": 0, "epochs": 0.1},
        {"steps": 0, "seconds": 0.2},
    ],
    ids=lambda strategy: next(iter(strategy)),
)
def test_every_strategy_repairs_a_net_and_leaves_its_size(bench, strategy):
    candidate = bench.compress(NARROW)
    sizes = {name: value.shape for name, value in candidate.state_dict().items()}
    found = train(candidate, spec(NARROW, **strategy), bench)
    assert found.note is None
    assert found.score.value > found.oneshot.value
    assert {name: value.shape for name, value in found.model.state_dict().items()} == sizes


def test_reconstruction_is_a_training_of_its_own(bench):
    found = train(bench.compress(NARROW), spec(NARROW, steps=0, reconstruction_steps=20), bench)
    assert found.score.value > found.oneshot.value


def test_from_scratch_nothing_of_the_dense_model_is_left(bench):
    result = run(spec(init="random"), bench)
    assert result.state is TrialState.COMPLETE, result.reason
    assert result.oneshot.value < 0.5
    weights, dense = bench.outbox.weights(result.key), bench.dense.state_dict()
    assert not torch.equal(weights["stem.weight"], dense["stem.weight"])
    assert run(spec(init="random"), bench).score == result.score


def test_the_dense_model_is_never_trained_from_scratch(bench):
    assert run(spec(Plan(), init="random"), bench).score == run(spec(Plan()), bench).score


def test_a_training_that_only_gets_worse_ends_early_and_says_so(task):
    losses = iter(range(1000))
    worsening = dataclasses.replace(task, loss=lambda outputs, _: outputs.square().mean() * 0 + next(losses))
    bench = Workbench(worsening, CPU)
    found = train(bench.compress(PLAN), spec(steps=250, distillation=0.0, batch_size=2), bench)
    assert found.score == found.oneshot
    assert "stayed worse" in found.note
    assert next(losses) < 200


def test_a_killed_fine_tuning_goes_on_after_reconstruction(bench, tmp_path, monkeypatch):
    long = spec(steps=4, reconstruction_steps=2)
    expected = train(bench.compress(PLAN), long, bench)
    monkeypatch.setattr("ranksearch.finetune.loop.SAVE_SECONDS", 0.0)
    good = bench.batches

    def interrupted(config, seed):
        yield from list(good(config, seed))[:2]
        raise KeyboardInterrupt

    bench.batches = interrupted
    with pytest.raises(KeyboardInterrupt):
        train(bench.compress(PLAN), long, bench, checkpoint=tmp_path / "training")
    bench.batches = good
    monkeypatch.setattr("ranksearch.trial.reconstruct", None)  # is not called again
    resumed = train(bench.compress(PLAN), long, bench, checkpoint=tmp_path / "training")
    assert resumed.score == expected.score
    for name, value in expected.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
