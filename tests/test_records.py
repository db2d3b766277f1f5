"""Records travel as JSON, check their values, and have keys that name their content."""

import json
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranksearch.records import (
    FinetuneConfig,
    LayerChoice,
    MeasureConfig,
    Measurement,
    Plan,
    Score,
    TrialResult,
    TrialSpec,
    TrialState,
    key_of,
)

names = st.text("abcdefgh.0123456789", min_size=1, max_size=12)
choices = st.builds(
    LayerChoice,
    method=st.sampled_from(["svd", "spatial_svd", "tucker2"]),
    ranks=st.lists(st.integers(1, 4096), min_size=1, max_size=3).map(tuple),
)
plans = st.dictionaries(names, choices | st.just(LayerChoice(method="dense")), max_size=8).map(Plan)
specs = st.builds(
    TrialSpec,
    study=names,
    plan=plans,
    seed=st.integers(0, 2**31),
    finetune=st.builds(FinetuneConfig, steps=st.integers(0, 100), learning_rate=st.floats(1e-6, 1)),
    measure=st.builds(MeasureConfig, threads=st.integers(1, 8)),
)


def through_json(record):
    return type(record).from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)))


@given(specs)
def test_json_and_pickle_give_the_record_back(spec):
    assert through_json(spec) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


@given(specs, specs)
def test_equal_records_have_equal_keys_and_others_do_not(a, b):
    assert (key_of(a) == key_of(b)) == (a == b)


def test_a_key_is_the_same_in_another_process():
    spec = TrialSpec(
        study="s",
        plan=Plan({"b": LayerChoice.parse("svd:3"), "a": LayerChoice.parse("svd:4")}),
        seed=1,
        finetune=FinetuneConfig(),
        measure=MeasureConfig(),
    )
    code = (
        "import json,sys; from ranksearch.records import *; print(key_of(TrialSpec.from_json(json.loads(sys.argv[1]))))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, json.dumps(spec.to_json())], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == key_of(spec)


@given(st.dictionaries(names, choices, min_size=2, max_size=6))
def test_a_plan_does_not_depend_on_the_order_of_its_layers_nor_on_dense_ones(layers):
    reversed_layers = dict(reversed(layers.items())) | {"zz": LayerChoice(method="dense")}
    assert Plan(layers) == Plan(reversed_layers)
    assert hash(Plan(layers)) == hash(Plan(reversed_layers))
    assert dict(Plan(layers)) == layers


@given(choices)
def test_a_choice_reads_back_what_it_writes(choice):
    assert LayerChoice.parse(str(choice)) == choice


@pytest.mark.parametrize("text", ["", "svd:0", "svd:x", "dense:3", "svd:1x-2"])
def test_a_malformed_choice_is_refused(text):
    with pytest.raises(ValueError, match=r"must be|write method:rank"):
        LayerChoice.parse(text)


@pytest.mark.parametrize(
    "values",
    [
        {"steps": -1},
        {"allocation": "adaptive"},
        {"batch_size": 0},
        {"learning_rate": 0},
        {"momentum": 1},
        {"temperature": 0},
        {"distillation": 2},
        {"precision": "float8"},
        {"layout": "nhwc"},
        {"threads": -1},
        {"epochs": -0.5},
        {"seconds": float("inf")},
        {"optimizer": "adamm"},
        {"schedule": "exponential"},
        {"decay_every": 0},
        {"init": "pretrained"},
        {"reconstruction_steps": -1},
        {"atcd": "projected"},
        {"atcd_period": 0},
        {"correlation_weight": -1},
        {"correlation_period": 0},
        {"block_distillation": -0.1},
        {"block_distillation": float("inf")},
        {"sparsity_until": 1.1},
        {"ema": 1},
    ],
)
def test_a_value_outside_its_rule_is_refused_with_what_was_got(values):
    ((name, got),) = values.items()
    with pytest.raises(ValueError, match=name) as caught:
        FinetuneConfig(**values)
    assert repr(got) in str(caught.value)


@pytest.mark.parametrize("field", ["correlation_weight", "sparsity_until"])
def test_what_acts_on_factors_is_refused_where_none_are_trained(field):
    with pytest.raises(ValueError, match=rf"{field} is 0\.01; .* atcd"):
        FinetuneConfig(**{field: 0.01, "atcd": "project"})


@pytest.mark.parametrize(
    ("bounds", "steps"),
    [
        ({}, 20),
        ({"steps": 0}, 0),
        ({"steps": 7, "epochs": 2}, 7),
        ({"steps": 0, "epochs": 2}, 30),  # 15 batches of 64 in 1000
        ({"steps": 0, "epochs": 0.1}, 2),
        ({"steps": 99, "epochs": 2, "seconds": 1}, 30),
        ({"steps": 0, "seconds": 1}, None),
        ({"steps": 0, "epochs": 2, "batch_size": 4000}, 2),
    ],
)
def test_steps_and_epochs_bound_together(bounds, steps):
    assert FinetuneConfig(**bounds).num_steps(1000) == steps


LENGTHS = {"steps": 10, "epochs": 0.5, "seconds": 3.0, "reconstruction_steps": 2}


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9).map(sorted))
def test_what_loses_more_is_trained_longer_and_never_longer_than_the_longest(losses):
    config = FinetuneConfig(**LENGTHS, allocation="by_loss")
    allocated = [config.allocated(lost) for lost in losses]
    for length in ("steps", "epochs", "seconds"):
        found = [getattr(each, length) for each in allocated]
        assert found == sorted(found)
        assert all(value % getattr(config, length) == 0 for value in found)
        assert found[-1] <= getattr(config.longest, length) == getattr(config.allocated(1.0), length)
    assert {each.allocation for each in allocated} == {"fixed"}


def test_what_loses_nothing_is_not_trained_where_loss_decides():
    config = FinetuneConfig(**LENGTHS, allocation="by_loss").allocated(0.0)
    assert config.num_steps(1000) == 0
    assert config.reconstruction_steps == 0


def test_a_fixed_training_is_as_long_for_every_loss_and_named_as_before_there_was_a_choice():
    config = FinetuneConfig(**LENGTHS)
    assert config.allocated(0.0) is config.allocated(0.9) is config.longest is config
    assert "allocation" not in config.to_json()
    assert key_of(config) != key_of(FinetuneConfig(**LENGTHS, allocation="by_loss"))
    assert through_json(FinetuneConfig(allocation="by_loss")) == FinetuneConfig(allocation="by_loss")


def test_an_unknown_field_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        FinetuneConfig.from_json({"learnin_rate": 0.1})


def test_a_result_without_a_measurement_has_no_latency():
    result = TrialResult(key="k", state=TrialState.COMPLETE, score=Score(value=0.5, low=0.4, high=0.6, num_examples=9))
    assert through_json(result) == result
    assert result.value_of("accuracy") == 0.5
    with pytest.raises(ValueError, match="latency is None"):
        result.value_of("latency")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_is_finite(value):
    with pytest.raises(ValueError, match="finite"):
        Score(value=value, low=0, high=1, num_examples=9)


@pytest.mark.parametrize("ratio", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_measurement_is_finite_and_positive(ratio):
    with pytest.raises(ValueError, match="ratio"):
        Measurement(
            protocol=1,
            identity={},
            conditions={},
            batch_size=8,
            ratio=ratio,
            ratio_low=ratio,
            ratio_high=ratio,
            dense_p50_ms=1,
            p50_ms=1,
            p90_ms=None,
            p95_ms=None,
            p99_ms=None,
            num_blocks=10,
            num_samples=100,
            num_dropped_blocks=0,
            warmup_seconds=0.5,
            seconds=1,
        )
