import json
import re
from dataclasses import replace

import pytest

from ranksearch.errors import ConfigError
from ranksearch.profiling import profile_options, verdict
from ranksearch.records import DENSE, Cost, LayerChoice, MeasureConfig, OptionProfile, Profile
from tests.profiling.conftest import bench_of, records_of

QUICK = MeasureConfig(batch_size=2)


@pytest.fixture(scope="module")
def made():
    bench, heard = bench_of("residual"), []
    layers = records_of(bench)
    profile = profile_options(
        bench,
        layers,
        QUICK,
        seconds={"latencies": 0.5, "losses": 0.0},
        examples=16,
        progress=lambda phase, done: heard.append((phase, done)),
    )
    return layers, profile, heard


def test_every_option_of_every_layer_in_order(made):
    layers, profile, _ = made
    expected = [(layer.name, o.choice, o.cost) for layer in layers for o in layer.options]
    assert [(o.layer, o.choice, o.cost) for o in profile.options] == expected
    for option in profile.options:
        if option.choice.is_dense:
            assert (option.latency, option.error, option.loss, option.latency_deviation) == (0, 0, 0, 0)


def test_what_was_measured_and_what_was_interpolated_is_marked(made):
    layers, profile, _ = made
    for layer in layers:
        marks = [option.is_loss_measured for option in profile.options if option.layer == layer.name]
        assert sum(marks) == min(len(layer.options), 3 + 1)  # ends, middle, dense
    assert not all(option.is_loss_measured for option in profile.options)


def test_it_travels_as_json(made):
    profile = made[1]
    assert Profile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


def test_phases_are_heard_of_in_order_and_timed(made):
    _, profile, heard = made
    assert list(dict.fromkeys(phase for phase, _ in heard)) == list(profile.seconds)
    assert list(profile.seconds) == ["staircase", "latencies", "errors", "losses"]
    for phase in profile.seconds:
        parts = [done for name, done in heard if name == phase]
        assert parts == sorted(parts)
        assert (parts[0], parts[-1]) == (0.0, 1.0)
    assert profile.seconds["staircase"] > 0
    assert profile.seconds["latencies"] > 0
    assert profile.identity["batch_size"] == "2"
    assert profile.identity["probe"] == "1"


def test_what_is_known_under_this_identity_is_taken_over(made):
    profile = made[1]
    again = profiled_with(profile.timings)
    marks = {option.is_latency_measured for option in again.options if not option.choice.is_dense}
    assert marks == {True, False}  # in each shape one option is timed to tell whether the others may be taken over
    other = profiled_with(replace(profile.timings, identity={**profile.identity, "threads": "9"}))
    assert all(option.is_latency_measured for option in other.options)


def profiled_with(known) -> Profile:
    bench = bench_of("residual")
    budget = {"latencies": 0.0, "losses": 0.0}
    return profile_options(bench, records_of(bench), QUICK, seconds=budget, examples=16, known=known)


def test_seconds_for_a_phase_that_is_none():
    with pytest.raises(ConfigError, match="seconds are given for 'loss'; give them for latencies or losses"):
        profile_options(bench_of("residual"), (), QUICK, seconds={"loss": 3})


def option(layer, latency, loss, rank, deviation=0.001):
    choice = LayerChoice(method="svd", ranks=(rank,)) if rank else DENSE
    return OptionProfile(
        layer=layer, choice=choice, cost=Cost(parameters=1, macs=1), latency=latency, loss=loss, error=0.1,
        latency_deviation=deviation,
    )  # fmt: skip


def profile_of(*options) -> Profile:
    return Profile(identity={}, dense_ms=1.0, options=options)


def ratios(text) -> dict[float, float]:
    return {float(a): float(b) for a, b in re.findall(r"predicted loss of (\S+) nats: (\S+)", text)}


TWO_LAYERS = profile_of(
    option("a", -0.3, 0.20, 1), option("a", -0.2, 0.02, 2), option("a", -0.19, 0.19, 3), option("a", 0.0, 0.0, 0),
    option("b", -0.1, 0.08, 1), option("b", 0.05, 0.01, 2), option("b", 0.0, 0.0, 0),
    option("c", -0.001, 0.0, 1), option("c", 0.0, 0.0, 0),
)  # fmt: skip


def test_verdict_by_hand():
    text = verdict(TWO_LAYERS, (0.01, 0.02, 0.1, 0.3))
    assert "smallest latency ratio, losses aside: 0.599" in text
    assert ratios(text) == {0.01: 1.0, 0.02: 0.8, 0.1: 0.7, 0.3: 0.6}
    assert text.endswith("nothing is faster than the dense layer in 1 of 3: c")


def test_verdict_without_losses_tells_of_latency_alone():
    text = verdict(profile_of(option("a", -0.3, None, 1), option("a", 0.0, None, 0)))
    assert text == "smallest latency ratio, losses aside: 0.700"


@pytest.mark.parametrize(("latency", "deviation"), [(-0.001, 0.001), (0.3, 0.0), (-0.5, 0.3)])
def test_nothing_worth_having_is_said_plainly(latency, deviation):
    profile = profile_of(option("a", latency, 0.1, 1, deviation), option("a", 0.0, 0.0, 0, 0.0))
    assert verdict(profile).startswith("nothing worth having")


def test_an_option_off_the_convex_hull_is_no_step_to_the_next():
    options = option("a", -0.01, 0.02, 1), option("a", -0.3, 0.04, 2), option("a", 0.0, 0.0, 0)
    assert ratios(verdict(profile_of(*options), (0.03, 0.05))) == {0.03: 1.0, 0.05: 0.7}


def test_more_loss_is_never_slower():
    found = list(ratios(verdict(TWO_LAYERS, [i / 100 for i in range(1, 40)])).values())
    assert found == sorted(found, reverse=True)


def test_a_new_workbench_is_profiled_and_its_model_can_still_be_trained():
    layers = records_of(bench_of("plain"))
    bench = bench_of("plain")  # as a worker has it that nobody has asked for anything
    profile_options(bench, layers, QUICK, seconds={"latencies": 0.01, "losses": 0.0}, examples=16)
    assert not any(parameter.is_inference() for parameter in bench.dense.parameters())
