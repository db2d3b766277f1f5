"""Undominated options against pairwise comparison in plain Python."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranksearch.allocate import undominated
from ranksearch.records import DENSE, Cost, LayerChoice, LayerRecord, Option, OptionProfile, Profile

OBJECTIVES = [
    ("latency", "accuracy"),
    ("accuracy", "parameters"),
    ("bytes", "accuracy"),
    ("macs", "accuracy"),
    ("parameters", "accuracy", "latency", "macs"),
]
WHOLE = Cost(parameters=4, macs=4)
# Few values, so that ties in one, in several and in all of them are common.
Row = tuple[int, int, int, int]  # latency in hundredths, loss, parameters, macs
rows_of_a_layer = st.lists(
    st.tuples(st.integers(-4, 2), st.integers(-1, 3), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=7
)


def made(rows: list[Row], *, with_losses: bool = True) -> tuple[LayerRecord, Profile]:
    choices = [LayerChoice(method="svd", ranks=(i + 1,)) for i in range(len(rows))]
    costs = [Cost(parameters=row[2], macs=row[3]) for row in rows]
    options = [Option(choice=choice, cost=cost) for choice, cost in zip(choices, costs, strict=True)]
    profiles = [
        OptionProfile(
            layer="a",
            choice=choice,
            cost=cost,
            latency=row[0] / 100,
            error=(row[1] + 1) if with_losses else max(row[1], 0),
            loss=row[1] if with_losses or row[1] < 3 else None,
        )
        for choice, cost, row in zip(choices, costs, rows, strict=True)
    ]
    layer = LayerRecord(
        name="a", kind="Linear", shape="", cost=WHOLE, options=(*options, Option(choice=DENSE, cost=WHOLE))
    )
    return layer, Profile(identity={}, dense_ms=1.0, options=tuple(profiles))


def values(row: Row, objectives, noise: float) -> tuple[float, ...]:
    latency = 0 if abs(row[0] / 100) < noise else row[0]
    named = {"latency": latency, "accuracy": row[1], "parameters": row[2], "bytes": row[2], "macs": row[3]}
    return tuple(named[objective] for objective in objectives)


def by_comparison(rows: list[Row], objectives, noise: float) -> set[int]:
    """Of the factorized options; the dense one stands first, and the first of equals wins."""
    all_values = [values(row, objectives, noise) for row in [(0, 0, 4, 4), *rows]]
    return {
        i - 1
        for i, mine in enumerate(all_values)
        if i
        and not any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and (other != mine or j < i)
            for j, other in enumerate(all_values)
        )
    }


@given(rows_of_a_layer, st.sampled_from(OBJECTIVES), st.sampled_from([0.0, 0.015]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_what_is_left_is_the_nondominated_set(rows, objectives, noise, with_losses):
    if not with_losses:
        rows = [(row[0], max(row[1], 0), *row[2:]) for row in rows]
    layer, profile = made(rows, with_losses=with_losses)
    (reduced,) = undominated([layer], profile, objectives, noise)
    expected = by_comparison(rows, objectives, noise)
    assert {o.choice.ranks[0] - 1 for o in reduced.options[:-1]} == expected
    if not expected:
        assert reduced.options == ()
        assert reduced.skipped.startswith("nothing here is ")
        return
    assert reduced.options[-1].choice == DENSE
    assert reduced.skipped is None
    assert replace(reduced, options=layer.options) == layer
    by = next(o for o in ("latency", "macs", "parameters", "bytes") if o in objectives)
    keys = [values(rows[o.choice.ranks[0] - 1], [by, "accuracy"], noise) for o in reduced.options[:-1]]
    assert keys == sorted(keys, key=lambda key: (key[0], -key[1]))


def test_with_latency_alone_a_step_up_is_slower_and_more_exact():
    layer, profile = made([(-1, 1, 4, 4), (-3, 3, 4, 4), (-2, 2, 4, 4), (-2, 3, 1, 1)])
    (reduced,) = undominated([layer], profile, ("latency", "accuracy"))
    assert [str(o.choice) for o in reduced.options] == ["svd:2", "svd:3", "svd:1", "dense"]


@pytest.mark.parametrize(
    ("objectives", "reason"),
    [
        (("latency", "accuracy"), "nothing here is faster than dense"),
        (("accuracy", "bytes"), "nothing here is smaller than dense"),
        (("parameters", "accuracy", "latency"), "nothing here is faster or smaller than dense"),
    ],
)
def test_where_dense_alone_remains_the_reason_is_told(objectives, reason):
    layer, profile = made([(-1, 1, 5, 5), (2, 0, 4, 4)])
    (reduced,) = undominated([layer], profile, objectives, noise=0.011)
    assert reduced == replace(layer, options=(), skipped=reason)


def test_noise_takes_what_saves_less_and_leaves_what_saves_more():
    layer, profile = made([(-1, 1, 4, 4), (-2, 2, 4, 4)])
    (reduced,) = undominated([layer], profile, ("latency", "accuracy"), noise=0.015)
    assert [str(o.choice) for o in reduced.options] == ["svd:2", "dense"]


def test_noise_does_not_hide_what_is_slower():
    layer, profile = made([(2, 1, 1, 4), (1, 1, 1, 4)])
    (reduced,) = undominated([layer], profile, ("latency", "parameters", "accuracy"), noise=0.005)
    assert [str(o.choice) for o in reduced.options] == ["svd:2", "dense"]


def test_skipped_layers_pass_as_they_are():
    layer, profile = made([(-1, 1, 4, 4)])
    skipped = LayerRecord(name="b", kind="Conv2d", shape="", cost=WHOLE, skipped="kept dense by the space")
    assert undominated([skipped, layer], profile, ("latency", "accuracy")) == (skipped, layer)
