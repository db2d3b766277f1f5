"""The SQL views and the frames against plain Python that works from the rows one by one."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from ranksearch.database import TRIAL_COLUMNS, front, schema
from ranksearch.records import OBJECTIVES, key_of

from .made import make_measurement, make_study

NAMES = (f"study {i}" for i in itertools.count())
OBJECTIVE_SETS = [
    ("latency", "accuracy"),
    ("accuracy", "latency"),
    ("latency",),
    ("accuracy",),
    ("accuracy", "parameters"),
    ("bytes", "latency"),
    ("macs", "parameters"),
    ("latency", "accuracy", "bytes"),
    ("latency", "accuracy", "parameters", "bytes", "macs"),
]

# Few different values, so that ties are common.
ratios = st.sampled_from([0.25, 0.5, 0.75, 1.0])
maybe_accuracy = st.none() | st.sampled_from([0.5, 0.6, 0.7])
maybe_count = st.none() | st.integers(1, 3)
measured = st.lists(
    st.tuples(st.sampled_from(["search", "fresh"]), ratios, st.sampled_from([2.0, 3.0]), st.sampled_from(["i", "j"])),
    max_size=4,
)
layer_choice = st.none() | st.sampled_from([("svd", "1"), ("svd", "8"), ("other", "2x3")])


@st.composite
def trial_rows(draw, number, failed):
    state = draw(st.sampled_from(["complete", "complete", "complete", "failed", "pruned", "running"]))
    return {
        "number": number,
        "origin": draw(st.sampled_from(["dense", "seed:x", "sampler"])),
        "state": state,
        "retry_of": draw(st.none() | st.sampled_from(failed)) if failed else None,
        "attempt": number,
        "recipe": draw(st.sampled_from(["plain", "distil", None])),
        "spec_key": draw(st.sampled_from(["a", "b", "c"])),
        "parent_key": draw(st.sampled_from(["a", "b", None])),
        "accuracy": draw(maybe_accuracy),
        "parameters": draw(maybe_count),
        "macs": draw(maybe_count),
        "bytes": draw(maybe_count),
        "reason": draw(st.none() | st.just("broken")),
        "measured": draw(measured),
        "seconds": draw(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from([0.5, 1.0, 2.0]))),
        "test": draw(maybe_accuracy),
        "choices": draw(st.lists(layer_choice, min_size=2, max_size=2)),
    }


@st.composite
def study_rows(draw):
    trials = []
    for number in range(draw(st.integers(0, 8))):
        # Also a row that is not failed may be named by a retry: it must not vanish.
        trials.append(draw(trial_rows(number, [t["number"] for t in trials])))
    return trials


def fill(database, study, trials):
    def insert(connection):
        study_id = connection.scalar(text("SELECT id FROM rs_study WHERE name = :name"), {"name": study.name})
        query = text("SELECT id FROM rs_layer WHERE study_id = :id ORDER BY position")
        layer_ids = connection.scalars(query, {"id": study_id}).all()
        for trial in trials:
            _insert_trial(connection, study_id, layer_ids, trial)

    database.write(insert)


def _insert_trial(connection, study_id, layer_ids, trial):
    kept = {name: trial[name] for name in trial.keys() & {column.name for column in schema.trial.c}}
    accuracy = trial["accuracy"]
    row = (
        {"spec_key": "s"}
        | kept
        | {
            "study_id": study_id,
            "accuracy_low": accuracy and accuracy - 0.01,
            "accuracy_high": accuracy and accuracy + 0.01,
            "plan_key": "p",
            "plan": f'{{"trial":"{trial["number"]}"}}',
            "seed": 0,
            "started": "2026",
            "retryable": False,
        }
    )
    trial_id = connection.execute(schema.trial.insert().values(row)).inserted_primary_key[0]
    plain = dict.fromkeys(("protocol", "batch_size", "num_blocks", "num_samples", "num_dropped_blocks"), 0)
    plain |= {"p50_ms": 0.0, "warmup_seconds": 0.0, "seconds": 0.0, "identity": {}, "conditions": {}}
    plain |= {"trial_id": trial_id, "created": "2026", "flags": ""}
    for kind, ratio, dense, identity in trial["measured"]:
        values = {"kind": kind, "ratio": ratio, "ratio_low": ratio - 0.01, "ratio_high": ratio + 0.01}
        values |= {"dense_p50_ms": dense, "identity_key": identity}
        connection.execute(schema.measurement.insert().values(plain | values))
    for phase, seconds in trial["seconds"].items():
        connection.execute(schema.timing.insert().values(trial_id=trial_id, phase=phase, seconds=seconds))
    if trial["test"] is not None:
        score = {"value": trial["test"], "low": trial["test"] - 0.02, "high": trial["test"] + 0.02}
        connection.execute(schema.score.insert().values(trial_id=trial_id, split="test", num_examples=1, **score))
        connection.execute(
            schema.score.insert().values(trial_id=trial_id, split="other", num_examples=1, value=9, low=9, high=9)
        )
    for layer_id, choice in zip(layer_ids, trial["choices"], strict=True):
        if choice:
            values = {"trial_id": trial_id, "layer_id": layer_id, "method": choice[0], "ranks": choice[1]}
            connection.execute(schema.choice.insert().values(values))


# The oracle


def searched(trial):
    return [m for m in trial["measured"] if m[0] == "search"]


def shown(trial, identity):
    """(ratio, dense median) of the newest fresh measurement under that identity, else of the search's newest."""
    fresh = [m for m in trial["measured"] if m[0] == "fresh" and m[3] == identity]
    newest = (fresh or searched(trial) or [(None, None, None, None)])[-1]
    return newest[1:3]


def is_superseded(trial, trials):
    return trial["state"] == "failed" and any(other["retry_of"] == trial["number"] for other in trials)


def expected_row(study, trial, trials):
    dense = [t for t in trials if t["origin"] == "dense" and t["state"] == "complete"]
    identity = searched(dense[0])[-1][3] if dense and searched(dense[0]) else None
    dense_ms = shown(dense[0], identity)[1] if identity else None
    parents = [t["number"] for t in trials if t["spec_key"] == trial["parent_key"] and t["state"] == "complete"]
    ratio, accuracy, test = shown(trial, identity)[0], trial["accuracy"], trial["test"]
    return {
        "study": study,
        "trial": trial["number"],
        "state": trial["state"],
        "accuracy": accuracy,
        "accuracy_low": accuracy and accuracy - 0.01,
        "accuracy_high": accuracy and accuracy + 0.01,
        "latency_ms": ratio * dense_ms if ratio and dense_ms else None,
        "latency_ratio": ratio,
        "latency_ratio_low": ratio and ratio - 0.01,
        "latency_ratio_high": ratio and ratio + 0.01,
        "speedup": ratio and 1 / ratio,
        "parameters": trial["parameters"],
        "macs": trial["macs"],
        "bytes": trial["bytes"],
        "test_accuracy": test,
        "test_accuracy_low": test and test - 0.02,
        "test_accuracy_high": test and test + 0.02,
        "origin": trial["origin"],
        "recipe": trial["recipe"],
        "parent": max(parents, default=None),
        "attempt": trial["attempt"],
        "retry_of": trial["retry_of"],
        "reason": trial["reason"],
        "plan": f'{{"trial":"{trial["number"]}"}}',
        "seconds_total": sum(trial["seconds"].values()) if trial["seconds"] else None,
    }


def expected_front(rows, objectives):
    columns = {"latency": "latency_ratio"}
    points = {}
    for row in rows:
        point = [row[columns.get(name, name)] for name in objectives]
        if row["state"] == "complete" and None not in point:
            signs = [1 if OBJECTIVES[name] else -1 for name in objectives]
            points[row["trial"]] = [sign * value for sign, value in zip(signs, point, strict=True)]
    return [trial for trial, point in points.items() if not any(beats(other, point) for other in points.values())]


def expected_near(rows, objectives, slack):
    """Each trial alone made faster, and is it on the front then?"""
    found = []
    for row in rows:
        eased = row | {"latency_ratio": row["latency_ratio"] and row["latency_ratio"] / (1 + slack)}
        others = [other for other in rows if other is not row]
        if row["trial"] in expected_front([*others, eased], objectives):
            found.append(row["trial"])
    return found


def beats(a, b):
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def expected_layers(study, trials):
    for trial, (position, layer) in itertools.product(trials, enumerate(study.layers)):
        method, ranks = trial["choices"][position] or ("dense", "")
        costs = {(o.choice.method, "x".join(map(str, o.choice.ranks))): o.cost for o in layer.options}
        cost = costs.get((method, ranks))
        found = (cost.parameters, cost.macs) if cost else (None, None)
        yield (study.name, trial["number"], position, layer.name, layer.kind, layer.shape, method, ranks, *found)


# The comparison


def view(database, name, study):
    with database.reading() as connection:
        found = connection.execute(text(f"SELECT * FROM {name} WHERE study = :study"), {"study": study})
        return sorted(found.mappings().all(), key=lambda row: tuple(row.values())[:3])


def plain(frame, study):
    """A frame as the view's rows, with None for what is missing."""
    frame = frame.drop(columns=[c for c in frame if c.startswith("seconds_") and c != "seconds_total"])
    records = frame.reset_index().astype(object).where(lambda cells: cells.notna(), None).to_dict("records")
    return [{"study": study, **record} for record in records]


@pytest.mark.parametrize("objectives", OBJECTIVE_SETS, ids=",".join)
@settings(max_examples=10, deadline=None)
@given(trials=study_rows())
def test_views_and_frames_agree_with_the_rows(shared_database, objectives, trials):
    study = make_study(next(NAMES), objectives, num_layers=2)
    shared_database.save_study(study)
    fill(shared_database, study, trials)
    rows = [expected_row(study.name, trial, trials) for trial in trials]
    logical = [row for row, trial in zip(rows, trials, strict=True) if not is_superseded(trial, trials)]
    on_front = expected_front(logical, objectives)
    best = [row for row in logical if row["trial"] in on_front]

    attempts = view(shared_database, "rs_attempts", study.name)
    assert [{k: v for k, v in row.items() if k != "superseded"} for row in attempts] == rows
    assert [row["superseded"] for row in attempts] == [int(is_superseded(t, trials)) for t in trials]
    assert view(shared_database, "rs_trials", study.name) == logical
    assert view(shared_database, "rs_pareto", study.name) == best
    layers = [tuple(row.values()) for row in view(shared_database, "rs_layers", study.name)]
    assert layers == list(expected_layers(study, trials))

    assert plain(shared_database.trials_frame(study.name, all_rows=True), study.name) == rows
    assert plain(shared_database.trials_frame(study.name), study.name) == logical
    assert plain(shared_database.pareto_frame(study.name), study.name) == best
    for slack in (0.5, 1.0):
        found = shared_database.pareto_frame(study.name, latency_slack=slack).index.tolist()
        assert found == expected_near(logical, objectives, slack)

    studies = shared_database.studies_frame().set_index("study").loc[study.name]
    for state in ("complete", "pruned", "failed", "running"):
        assert studies[f"num_{state}"] == sum(row["state"] == state for row in logical)


@settings(max_examples=25, deadline=None)
@given(trials=study_rows())
def test_seconds_of_each_phase(shared_database, trials):
    study = make_study(next(NAMES), num_layers=2)
    shared_database.save_study(study)
    fill(shared_database, study, trials)
    frame = shared_database.trials_frame(study.name, all_rows=True)
    phases = sorted({phase for trial in trials for phase in trial["seconds"]})
    assert list(frame) == [*TRIAL_COLUMNS, *(f"seconds_{phase}" for phase in phases), "seconds_total"]
    for trial, phase in itertools.product(trials, phases):
        found = frame.loc[trial["number"], f"seconds_{phase}"]
        assert found == trial["seconds"][phase] if phase in trial["seconds"] else math.isnan(found)


def test_columns_have_one_type_with_and_without_rows(database):
    empty = make_study("empty")
    database.save_study(empty)
    study = make_study("full", num_layers=2)
    database.save_study(study)
    trial = {"number": 0, "origin": "dense", "state": "complete", "retry_of": None, "attempt": 0, "accuracy": 0.5}
    trial |= {"parameters": 1, "macs": 1, "bytes": 1, "reason": None, "measured": [], "seconds": {}, "test": None}
    fill(database, study, [trial | {"choices": [None, None]}])
    frames = [database.trials_frame("empty"), database.trials_frame("full"), database.pareto_frame("empty")]
    for frame in frames:
        assert frame.index.name == "trial"
        assert pd.api.types.is_integer_dtype(frame.index)
        assert list(frame) == [*TRIAL_COLUMNS, "seconds_total"]
    assert len({str(frame.dtypes.to_dict()) for frame in frames}) == 1
    json.loads(frames[1].to_json(orient="records"))


def test_studies_come_in_the_order_they_were_created(database):
    for name, day in (("b", 2), ("c", 3), ("a", 1)):
        database.save_study(replace(make_study(name), created=f"2026-01-0{day}T00:00:00+00:00"))
    frame = database.studies_frame()
    assert frame.study.tolist() == ["a", "b", "c"]
    assert frame.num_complete.tolist() == [0, 0, 0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_to_be_better_in_one_objective_is_enough(database, objective):
    """Equal in the others it drives a trial from the front, worse in the others it stands beside it."""
    study = make_study(objectives=tuple(OBJECTIVES), num_layers=2)
    database.save_study(study)
    trial = {"origin": "sampler", "state": "complete", "retry_of": None, "attempt": 0, "reason": None, "accuracy": 0.5}
    trial |= {"parameters": 2, "macs": 2, "bytes": 2, "seconds": {}, "test": None, "choices": [None, None]}
    better = {"latency": {"measured": [("search", 0.25, 2.0, "i")]}, "accuracy": {"accuracy": 0.6}}
    better = better.get(objective, {objective: 1})
    first = trial | {"number": 0, "measured": [("search", 0.5, 2.0, "i")]}
    worse = {"accuracy": 0.4, "parameters": 3, "macs": 3, "bytes": 3, "measured": [("search", 0.75, 2.0, "i")]}
    fill(database, study, [first, first | {"number": 1} | better, first | {"number": 2} | worse | better])
    expected = [1]  # 2 is equal to 1 in the objective and worse in the others
    assert [row["trial"] for row in view(database, "rs_pareto", study.name)] == expected
    assert database.pareto_frame(study.name).index.tolist() == expected

    other = replace(study, name="other")
    database.save_study(other)
    fill(database, other, [first, first | {"number": 1} | worse | better])
    assert [row["trial"] for row in view(database, "rs_pareto", "other")] == [0, 1]
    assert database.pareto_frame("other").index.tolist() == [0, 1]


def test_the_front_follows_a_fresh_measurement_of_the_study_s_own_identity(database):
    own, other = {"backend": "eager", "threads": "1"}, {"backend": "eager", "threads": "2"}
    identity = key_of(own)
    study = make_study()
    database.save_study(study)
    base = {"retry_of": None, "attempt": 0, "parameters": 1, "macs": 1, "bytes": 1, "reason": None, "seconds": {}}
    base |= {"test": None, "choices": [None] * 3, "state": "complete"}
    slow = {"number": 0, "origin": "dense", "accuracy": 0.5, "measured": [("search", 1.0, 2.0, identity)]}
    fast = {"number": 1, "origin": "sampler", "accuracy": 0.5, "measured": [("search", 0.5, 2.0, identity)]}
    fill(database, study, [base | slow, base | fast])
    assert database.pareto_frame(study.name).index.tolist() == [1]
    database.add_measurement(study.name, 0, make_measurement(0.125, dense_p50_ms=16.0, identity=other), "fresh")
    assert database.pareto_frame(study.name).index.tolist() == [1]
    assert database.trials_frame(study.name).latency_ms.tolist() == [2.0, 1.0]
    database.add_measurement(study.name, 0, make_measurement(0.25, dense_p50_ms=8.0, identity=own), "fresh")
    assert database.pareto_frame(study.name).index.tolist() == [0]
    assert database.trials_frame(study.name).latency_ms.tolist() == [2.0, 4.0]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan, math.inf]), min_size=width, max_size=width), max_size=12
        ).map(lambda rows: np.array(rows).reshape(-1, width))
    )
)
def test_front_is_what_nothing_dominates(points):
    finite = [list(p) for p in points if np.isfinite(p).all()]
    expected = [np.isfinite(p).all() and not any(beats(q, list(p)) for q in finite) for p in points]
    assert front(points).tolist() == expected
