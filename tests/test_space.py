"""A space's options: what the YAML says, for every layer, and clear words where it cannot be."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from ranksearch.allocate import UNIFORM_FRACTIONS, uniform, uniform_sweep
from ranksearch.data_folder import data_folder
from ranksearch.errors import SpaceError
from ranksearch.factorize import METHODS
from ranksearch.layers import find_layers
from ranksearch.records import Plan
from ranksearch.space import SearchSpace, SpaceConfig, layer_records, load_space


@pytest.fixture(scope="module")
def found():
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 3, groups=64, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    return find_layers(model, torch.zeros(1, 3, 16, 16))


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def config(**changes) -> SpaceConfig:
    return SpaceConfig.model_validate({"name": "test", **changes})


def records(found, **changes):
    return {layer.name: layer for layer in layer_records(config(**changes), found)}


def test_stem_and_classifier_stay_dense_unless_the_space_says_otherwise(found):
    layers = records(found)
    assert not layers["0"].options
    assert "space" in layers["0"].skipped
    assert not layers["8"].options
    layers = records(found, layers=[{"match": "@last", "dense": False}, {"match": "0", "dense": False}])
    assert layers["0"].options
    assert layers["8"].options


EVERY_METHOD = list(METHODS)


@pytest.mark.parametrize(
    "objectives", [["latency", "accuracy"], ["parameters", "accuracy"], ["macs", "bytes", "accuracy"]]
)
def test_every_method_has_options_where_it_saves_what_is_searched_for(found, objectives):
    """Tensor trains that are rebuilt and LinearConv leave the MACs alone, and so have a place only beside size."""
    layers = records(found, methods=EVERY_METHOD, objectives=objectives, dense=[])
    offered = {str(option.choice).partition(":")[0] for layer in layers.values() for option in layer.options[:-1]}
    size_matters = "latency" not in objectives
    assert {"svd", "spatial_svd", "channel_svd", "tucker2", "cp", "separable", "rank1"} <= offered
    assert ({"linearconv", "linearconv_lowrank", "linearconv_sparse", "tt_conv"} <= offered) == size_matters
    for layer in layers.values():
        dense = layer.cost
        for option in layer.options[:-1]:
            shares = [option.cost.macs / dense.macs] if objectives[0] in {"latency", "macs"} else []
            shares += [option.cost.parameters / dense.parameters] if {"parameters", "bytes"} & set(objectives) else []
            assert any(0.03 <= share <= 0.75 for share in shares)
            assert max(shares) <= 1


@settings(max_examples=25, deadline=None)
@example(multiple=1, low=0.125, high=1.0, per_method=2)  # spatial_svd:64 costs exactly what the dense layer does
@given(multiple=st.integers(1, 32), low=st.floats(0.01, 0.2), high=st.floats(0.6, 1.0), per_method=st.integers(1, 20))
def test_options_keep_the_rules(found, multiple, low, high, per_method):
    layers = records(found, ranks={"multiple": multiple, "kept": [low, high], "per_method": per_method})
    for layer in layers.values():
        *factorized, dense = layer.options or [None]
        assert dense is None or dense.choice.is_dense
        macs = [option.cost.macs for option in factorized]
        assert macs == sorted(macs)
        assert all(low * layer.cost.macs <= m <= high * layer.cost.macs for m in macs)
        methods = [option.choice.method for option in factorized]
        assert all(methods.count(m) <= per_method for m in methods)
        for option in factorized:
            largest = max(option.choice.ranks)
            assert largest % multiple == 0 or largest < 4 * multiple
    assert len({option.cost for option in layers["2"].options}) == len(layers["2"].options)


@pytest.mark.parametrize("aspect", [0.25, 0.5, 2.0, 4.0])
def test_aspects_add_ranks_off_the_diagonal_to_methods_of_several(found, aspect):
    of_method = {"methods": ["channel_svd", "tucker2"], "dense": [], "objectives": ["latency", "accuracy"]}
    ranks = {"multiple": 4, "kept": [0.001, 1], "per_method": 99}
    plain = records(found, **of_method, ranks=ranks)
    one, both = (records(found, **of_method, ranks=ranks | {"aspects": a}) for a in ([aspect], [1, aspect]))
    shape = next(f.shape for f in found if f.name == "2")
    largest = METHODS["tucker2"].max_ranks(shape)
    assert choices(one["2"], "channel_svd") == choices(plain["2"], "channel_svd")
    assert choices(one["2"], "tucker2")
    for first, second in choices(one["2"], "tucker2"):  # as near to the aspect as steps of 4 allow
        shares = first / largest[0], second / largest[1]
        assert abs(shares[0] - aspect * shares[1]) <= (4 / largest[0] + aspect * 4 / largest[1]) * 1.01
    assert set(choices(both["2"], "tucker2")) <= {*choices(plain["2"], "tucker2"), *choices(one["2"], "tucker2")}
    assert len(choices(both["2"], "tucker2")) > len(choices(plain["2"], "tucker2"))


def test_a_pattern_rule_changes_only_its_layers(found):
    plain, ruled = records(found), records(found, layers=[{"match": "4", "ranks": {"values": [5, 9]}}])
    assert [o.choice.ranks for o in ruled["4"].options[:-1]] == [(5,), (9,)]
    assert ruled["2"] == plain["2"]


def choices(layer, method: str) -> list[tuple[int, ...]]:
    return [option.choice.ranks for option in layer.options if option.choice.method == method]


WIDE = {"dense": ["0", "4", "8"], "objectives": ["accuracy", "parameters"]}


def test_ranks_given_in_full_are_for_the_methods_that_take_as_many(found):
    values = [8, [32, 16], [16, 32], [2, 7, 20], [40]]
    methods = ["channel_svd", "tucker2", "tt_conv_naive", "linearconv_sparse"]
    layer = records(found, **WIDE, methods=methods, ranks={"values": values, "kept": [0.001, 1]})["2"]
    assert choices(layer, "channel_svd") == [(8,), (40,)]
    assert set(choices(layer, "tucker2")) >= {(32, 16), (16, 32)}
    assert set(choices(layer, "linearconv_sparse")) >= {(32, 16), (16, 32)}
    assert (2, 7, 20) in choices(layer, "tt_conv_naive")
    for method in methods:
        largest = METHODS[method].max_ranks(next(f.shape for f in found if f.name == "2"))
        for ranks in choices(layer, method):
            assert len(ranks) == len(largest)
            assert all(rank <= most for rank, most in zip(ranks, largest, strict=True))


def test_a_full_list_of_ranks_alone_is_all_there_is(found):
    layer = records(found, **WIDE, methods=["tucker2"], ranks={"values": [[32, 16], [48, 24]], "kept": [0.001, 1]})["2"]
    assert [str(option.choice) for option in layer.options] == ["tucker2:32x16", "tucker2:48x24", "dense"]


def test_full_lists_need_not_fit_a_layer_that_no_method_takes(found):
    layers = records(found, methods=["tucker2"], dense=["0", "8"], ranks={"values": [[32, 16]]})
    assert not layers["5"].options
    assert layers["2"].options


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([32, 16, 8], r"ranks \[32, 16, 8\] fit no method of layer '2'; allowed are .*tucker2 up to \[64, 32\]"),
        ([65, 16], r"ranks \[65, 16\] fit no method of layer '2'; allowed are channel_svd up to \[64\], tucker2"),
        ([100], r"ranks \[100\] fit no"),
    ],
)
def test_a_full_list_that_no_method_takes_is_refused(found, ranks, words):
    rule = {"match": "2", "ranks": {"values": [[32, 16], ranks]}}
    with pytest.raises(SpaceError, match=words):
        records(found, methods=["channel_svd", "tucker2"], layers=[rule])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", "cannot be read as YAML"),
        ("just text", "should be a valid dictionary"),
        ("description: no name", "field required"),
        ("name: x\nmetods: [svd]", "did you mean 'methods'"),
        ("name: x\nmethods: [spatial_svdd]", "did you mean 'spatial_svd'"),
        ("name: x\nobjectives: [latencyy, accuracy]", "did you mean 'latency'"),
        ("name: x\nobjectives: [latency]", "accuracy and at least one other"),
        ("name: x\nranks: {multiple: 0}", "ranks.multiple"),
        ("name: x\nranks: {kept: [0.9, 0.1]}", "smaller than the second"),
        ("name: x\nranks: {values: [[]]}", "ranks.values.0.list: "),
        ("name: x\nranks: {values: [8, [9, 0]]}", "ranks.values.1.list.1: "),
        ("name: x\nranks: {values: [many]}", "ranks.values.0.rank: "),
        ("name: x\nranks: {minimum: 9, maximum: 8}", "at least the minimum"),
        ("name: x\nlayers: [{match: a, ranks: {maximum: 4}}, {match: b, rank: 3}]", "did you mean 'ranks'"),
        ("name: !!python/object/apply:os.system [true]", "cannot be read as YAML"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(tmp_path, text, words):
    with pytest.raises(SpaceError) as caught:
        load_space(write(tmp_path / "s.yaml", text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "s.yaml") in str(caught.value)


def test_an_unknown_space_names_the_shipped_ones():
    with pytest.raises(SpaceError, match="did you mean 'default'"):
        load_space("defualt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dense": ["conv*"]}, "matches nothing"),
        ({"layers": [{"match": "9"}]}, "matches nothing"),
        ({"layers": [{"match": "2", "ranks": {"values": [4000]}}]}, "largest rank is 96"),
        ({"dense": ["*"]}, "nothing to search"),
    ],
)
def test_a_space_that_does_not_fit_the_model_is_refused(found, changes, words):
    with pytest.raises(SpaceError, match=words):
        layer_records(config(**changes), found)


def test_plans_and_indices_are_each_others_inverse(found):
    space = SearchSpace(layer_records(config(), found))
    indices = {layer: size // 2 for layer, size in space.sizes.items()}
    assert space.indices(space.plan(indices)) == indices
    assert space.plan({layer: size - 1 for layer, size in space.sizes.items()}) == Plan()


def test_the_schema_beside_the_spaces_is_the_code_s_and_takes_every_shipped_space():
    schema = json.loads((data_folder("search_spaces") / "schema.json").read_text())
    assert schema == SpaceConfig.model_json_schema(), "run: python -m ranksearch.space > search_spaces/schema.json"
    for path in data_folder("search_spaces").glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
        assert load_space(path.stem).name == path.stem


def test_the_readme_s_example_is_a_valid_space():
    text = (data_folder("search_spaces") / "README.md").read_text()
    SpaceConfig.model_validate(yaml.safe_load(text.split("```yaml")[1].split("```")[0]))


def test_uniform_takes_the_option_nearest_to_the_fraction(found):
    layers = layer_records(config(), found)
    for fraction in UNIFORM_FRACTIONS:
        plan = uniform(layers, fraction, ("spatial_svd", "svd"))
        for layer in layers:
            gaps = [
                abs(o.cost.macs / layer.cost.macs - fraction)
                for o in layer.options[:-1]
                if o.choice.method in ("spatial_svd", "svd")
            ]
            if not gaps:
                assert layer.name not in plan
                continue
            (chosen,) = (o for o in layer.options if o.choice == plan[layer.name])
            assert abs(chosen.cost.macs / layer.cost.macs - fraction) == min(gaps)


def test_the_sweep_holds_no_plan_twice_and_none_that_is_dense(found):
    seeds = uniform_sweep(layer_records(config(), found))
    assert len({seed.plan for seed in seeds}) == len(seeds) >= 4
    assert all(seed.plan for seed in seeds)


def test_uniform_fractions_are_of_the_parameters_where_a_method_leaves_the_macs(found):
    space = config(methods=["linearconv"], objectives=["parameters", "accuracy"], ranks={"multiple": 4})
    layers = layer_records(space, found)
    seeds = uniform_sweep(layers)
    assert len(seeds) >= 4
    dense = {layer.name: layer.cost for layer in layers}
    costs = {layer.name: {o.choice: o.cost for o in layer.options} for layer in layers}
    for seed in seeds:
        fraction = float(seed.origin.rpartition("-")[2])
        kept = costs["2"][seed.plan["2"]].parameters / dense["2"].parameters
        offered = [
            cost.parameters / dense["2"].parameters for choice, cost in costs["2"].items() if choice.method != "dense"
        ]
        assert abs(kept - fraction) == min(abs(share - fraction) for share in offered)
