import tempfile

import pytest
import torch

from ranksearch.calibrate import reestimate_batchnorm
from ranksearch.compress import compress
from ranksearch.errors import SpaceError, TrialError
from ranksearch.evaluate import evaluate
from ranksearch.factorize import METHODS
from ranksearch.records import LayerChoice, MeasureConfig, Plan
from ranksearch.sensitivity import LayerRow, layer_choices, layer_table
from ranksearch.workbench import Workbench
from tests.toy import toy_task

QUICK = MeasureConfig(batch_size=2, max_seconds=0.05, min_blocks=2)


@pytest.fixture(scope="module", autouse=True)
def _quick_measurements(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ranksearch.latency.protocol.MAX_WARMUP_SECONDS", 0.05)
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("locks")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def bench():
    return Workbench(toy_task(), torch.device("cpu"))


@pytest.fixture(scope="module")
def table(bench):
    choices = layer_choices(bench, kept=0.5)
    return choices, layer_table(bench, choices, together=["conv*"], measure=QUICK)


def test_a_row_for_each_layer_then_for_each_pattern(table):
    choices, rows = table
    assert [row.layer for row in rows] == [*choices, "conv*"] == ["stem", "conv1", "conv2", "head", "conv*"]
    assert [dict(row.plan) for row in rows[:-1]] == [{name: choice} for name, choice in choices.items()]
    assert dict(rows[-1].plan) == {name: choices[name] for name in ("conv1", "conv2")}
    assert [LayerRow.from_json(row.to_json()) for row in rows] == rows


def test_accuracy_is_that_of_the_network_with_this_layer_replaced_and_its_statistics_made_anew(bench, table):
    dense = evaluate(bench.dense, bench.task.validation, bench.task.metric)
    for row in table[1]:
        small = compress(bench.task.model, row.plan)
        reestimate_batchnorm(small, [bench.task.calibration.batch(range(128))[0]])
        score = evaluate(small, bench.task.validation, bench.task.metric)
        assert row.accuracy == pytest.approx(score.value, abs=0.01)  # rounding may tip an example over
        assert row.accuracy_low <= row.accuracy <= row.accuracy_high
        assert row.accuracy_change == pytest.approx(row.accuracy - dense.value)


def test_speed_up_is_the_inverse_of_the_paired_ratio(table):
    for row in table[1]:
        assert row.speedup == 1 / row.latency_ratio
        assert row.latency_ratio_low <= row.latency_ratio <= row.latency_ratio_high


def test_weights_kept_are_counted_in_the_layers_concerned(bench, table):
    for row in table[1]:
        counted = [
            sum(p.numel() for name in row.plan for p in model.get_submodule(name).parameters())
            for model in (compress(bench.task.model, row.plan), bench.task.model)
        ]
        assert row.weights_kept == pytest.approx(counted[0] / counted[1])
        assert row.weights_kept <= 0.5


@pytest.mark.parametrize("kept", [0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("methods", [["svd", "spatial_svd"], ["tucker2"]])
def test_the_largest_ranks_that_keep_no_more_are_chosen(bench, kept, methods):
    found = layer_choices(bench, methods=methods, kept=kept)
    layers = {layer.name: layer for layer in bench.layers}
    for name, choice in found.items():
        dense, small = (bench.dense, bench.compress(Plan({name: choice})))
        share = [sum(p.numel() for p in model.get_submodule(name).parameters()) for model in (small, dense)]
        assert share[0] <= kept * share[1]
        if len(choice.ranks) == 1:
            (rank,) = choice.ranks
            larger = LayerChoice(method=choice.method, ranks=(rank + 1,))
            method, shape = METHODS[choice.method], layers[name].shape
            next_cost = None if rank == method.max_ranks(shape)[0] else method.cost(shape, larger.ranks)
            is_too_large = next_cost is None or next_cost.parameters > kept * share[1]
            assert is_too_large or next_cost == shape.cost()  # as much as the dense layer: no option


def test_only_layers_that_match_and_that_a_method_takes(bench):
    assert list(layer_choices(bench, match="conv?")) == ["conv1", "conv2"]
    assert list(layer_choices(bench, methods=["svd"])) == ["head"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"match": "covn*"}, "no layer matches 'covn\\*'"),
        ({"kept": 0.0}, "kept is 0"),
        ({"kept": 1.5}, "kept is 1.5"),
        ({"methods": ["svdd"]}, "did you mean 'svd'"),
        ({"methods": ["svd"], "kept": 0.001}, "leaves nothing|no layer"),
    ],
)
def test_what_cannot_be_chosen_is_said_in_one_line(bench, arguments, words):
    with pytest.raises(SpaceError, match=words) as caught:
        layer_choices(bench, **arguments)
    assert "\n" not in str(caught.value)


def test_a_pattern_without_layers_is_an_error_before_anything_is_measured(bench, monkeypatch):
    monkeypatch.setattr("ranksearch.sensitivity.run", None)
    with pytest.raises(SpaceError, match="extras"):
        layer_table(bench, {"conv1": LayerChoice(method="spatial_svd", ranks=(2,))}, together=["extras*"])


def test_a_network_that_fails_names_its_layer():
    broken = Workbench(toy_task(), torch.device("cpu"))
    choices = layer_choices(broken, match="conv1")
    broken.task.metric = lambda outputs, targets: torch.full((len(targets),), torch.nan)
    with pytest.raises(TrialError, match="the dense model: NonFiniteError"):
        layer_table(broken, choices, measure=QUICK)
