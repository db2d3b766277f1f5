"""What the commands print of a finished study, in every format."""

import csv
import io
import itertools
import json
import math

import pandas as pd
import pytest

from ranksearch.cli import figures
from ranksearch.study.study import Study
from tests.cli.conftest import FINISHED_BUDGET

STORAGE = "sqlite:///ranksearch.db"


def rows_of_table(text: str) -> list[str]:
    return text.rsplit("─\n", maxsplit=1)[-1].splitlines()


@pytest.mark.parametrize("command", ["trials", "pareto"])
def test_table_json_and_csv_agree_with_the_frame(project, ranksearch, command):
    study = Study.open("toy", STORAGE)
    frame = study.trials() if command == "trials" else study.pareto()
    as_json = json.loads(ranksearch(command, "--format", "json")[1])
    as_csv = list(csv.DictReader(io.StringIO(ranksearch(command, "--format", "csv")[1])))
    as_table = rows_of_table(ranksearch(command)[1])
    assert len(as_json) == len(as_csv) == len(as_table) == len(frame) > 0
    assert list(as_json[0]) == list(as_csv[0]) == ["trial", *frame.columns]
    for in_json, in_csv, in_table, (number, row) in zip(as_json, as_csv, as_table, frame.iterrows(), strict=True):
        assert in_json["trial"] == int(in_csv["trial"]) == number
        for name in ("accuracy", "latency_ratio", "speedup", "parameters", "seconds_total"):
            assert in_json[name] == float(in_csv[name]) == row[name]
        assert in_json["plan"] == json.loads(in_csv["plan"])
        for text in (
            figures.accuracy_of(row, percent=True),
            figures.speedup(row),
            figures.latency(row.latency_ms),
            figures.parameters(row.parameters),
            figures.methods(row.plan),
        ):
            assert text in in_table


def test_missing_values_are_null_in_json_and_empty_in_csv(project, ranksearch):
    in_json = json.loads(ranksearch("trials", "--format", "json")[1])
    in_csv = list(csv.DictReader(io.StringIO(ranksearch("trials", "--format", "csv")[1])))
    assert all(row["retry_of"] is None and row["reason"] is None for row in in_json)
    assert all(row["retry_of"] == "" and row["reason"] == "" for row in in_csv)


def test_the_whole_budget_is_there_and_the_dense_model_is_trial_0(project, ranksearch):
    rows = json.loads(ranksearch("trials", "--format", "json")[1])
    assert [row["trial"] for row in rows] == list(range(FINISHED_BUDGET))
    assert {row["state"] for row in rows} == {"complete"}
    assert (rows[0]["origin"], rows[0]["plan"]) == ("dense", {})


@pytest.mark.parametrize(
    ("column", "is_larger_first"),
    [("accuracy", True), ("speedup", True), ("latency_ms", False), ("macs", False), ("trial", False)],
)
def test_sorts_the_best_first(project, ranksearch, column, is_larger_first):
    rows = json.loads(ranksearch("trials", "--sort", column, "--format", "json")[1])
    values = [row[column] for row in rows]
    assert values == sorted(values, reverse=is_larger_first)
    assert json.loads(ranksearch("trials", "--sort", column, "--limit", "3", "--format", "json")[1]) == rows[:3]


def test_filters_keep_what_meets_them(project, ranksearch):
    front = Study.open("toy", STORAGE).pareto()
    middle = float(front.speedup.median())
    rows = json.loads(ranksearch("pareto", "--min-speedup", str(middle), "--format", "json")[1])
    assert {row["trial"] for row in rows} == set(front.index[front.speedup >= middle])


def test_a_filter_that_nothing_meets_ends_with_3_and_the_nearest(project, ranksearch):
    code, out, err = ranksearch("pareto", "--min-speedup", "1000", "--max-drop", "0.01", "--format", "json")
    nearest = Study.open("toy", STORAGE).pareto().iloc[0]
    assert (code, json.loads(out)) == (3, [])
    assert "--min-speedup 1000 --max-drop 0.01" in err
    assert f"nearest is trial {nearest.name} with {nearest.speedup:.2f}×" in err


def test_state_and_all(project, ranksearch):
    assert json.loads(ranksearch("trials", "--state", "failed", "--format", "json")[1]) == []
    complete = json.loads(ranksearch("trials", "--all", "--state", "complete", "--format", "json")[1])
    assert len(complete) == FINISHED_BUDGET


def test_studies(project, ranksearch):
    (row,) = json.loads(ranksearch("studies", "--format", "json")[1])
    assert (row["study"], row["num_complete"], row["num_running"]) == ("toy", FINISHED_BUDGET, 0)
    assert "toy" in ranksearch("studies")[1]


def test_status(project, ranksearch):
    found = json.loads(ranksearch("status", "--format", "json")[1])[0]
    trials = Study.open("toy", STORAGE).trials()
    assert (found["study"], found["is_running"], found["num_complete"]) == ("toy", False, FINISHED_BUDGET)
    for best in found["fastest"]:
        kept = trials[trials.accuracy >= trials.accuracy[0] - best["max_drop"]]
        assert best["speedup"] == kept.speedup.max()
    text = ranksearch("status", "toy")[1]
    assert f"{FINISHED_BUDGET} complete" in text
    assert f"{found['fastest'][0]['speedup']:.2f}×" in text


def test_status_sees_a_driver(project, ranksearch):
    from ranksearch.database import Database, study_lock

    with Database.open(STORAGE) as database, study_lock(database, "toy"):
        assert json.loads(ranksearch("status", "--format", "json")[1])[0]["is_running"]


def test_show(project, ranksearch):
    number = int(Study.open("toy", STORAGE).pareto().query("origin != 'dense'").index[0])
    record = Study.open("toy", STORAGE).trial(number)
    found = json.loads(ranksearch("show", str(number), "--format", "json")[1])
    assert found["accuracy"] == record.result.score.value
    assert found["measurement"] == record.result.measurement.to_json()
    assert {layer["layer"]: layer["choice"] for layer in found["layers"]} == record.spec.plan.to_json()
    text = ranksearch("show", str(number))[1]
    assert f"{len(record.spec.plan)} of 4 layers changed, {4 - len(record.spec.plan)} dense" in text
    for choice in record.spec.plan.values():
        assert str(choice) in text


def test_db(project, ranksearch):
    assert ranksearch("db", "check")[:2] == (0, f"{STORAGE} is in order\n")
    assert ranksearch("db", "upgrade")[0] == 0


def test_a_database_that_is_not_in_order(project, ranksearch):
    import sqlite3

    with sqlite3.connect("ranksearch.db") as connection:
        connection.execute("DROP VIEW rs_pareto")
    connection.close()
    code, out, err = ranksearch("db", "check")
    assert code == 4
    assert "rs_pareto" in out
    assert err.count("\n") == 1


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_tables_fit_the_window(project, ranksearch, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for command in ("trials", "pareto", "studies"):
        lines = ranksearch(command)[1].splitlines()
        assert max(map(len, lines)) <= width
        assert all("…" not in line for line in lines)


def test_a_wider_window_never_shows_less(project, ranksearch, monkeypatch):
    shown = []
    for width in (80, 100, 120, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        shown.append(set(ranksearch("pareto")[1].splitlines()[0].split()))
    assert all(narrow <= wide for narrow, wide in itertools.pairwise(shown))
    assert {"trial", "accuracy", "test", "speed-up", "methods"} <= shown[0]


MEASURED = {"speedup": 1 / 0.5435, "latency_ratio_low": 1 / 1.86, "latency_ratio_high": 1 / 1.82}
SCORED = {"accuracy": 0.9735, "accuracy_low": 0.966, "accuracy_high": 0.98}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (figures.accuracy_of(SCORED, percent=True), "97.35 % [96.6, 98.0]"),
        (figures.accuracy_of(SCORED, percent=False), "0.9735 [0.966, 0.980]"),
        (figures.speedup(MEASURED), "1.84× [1.82, 1.86]"),
        (figures.speedup(dict.fromkeys(MEASURED, math.nan)), "–"),
        (figures.latency(2.31), "2.31 ms"),
        (figures.latency(0.0314), "0.031 ms"),
        (figures.parameters(123_456), "0.12 M"),
        (figures.parameters(8_300), "8.3 k"),
        (figures.parameters(pd.NA), "–"),
        (figures.macs(14_200_000), "14.2 M"),
        (figures.macs(1_820_000_000), "1.82 G"),
        (figures.duration(0.083), "0.08 s"),
        (figures.duration(185), "3 min 5 s"),
        (figures.duration(7800), "2 h 10 min"),
        (figures.methods('{"a":"svd:3","b":"tucker2:4x4","c":"svd:5"}'), "svd×2 tucker2×1"),
        (figures.methods({}), "dense"),
        (figures.size(1536), "1.5 KiB"),
        (figures.drop(0.01, percent=True), "1 point"),
        (figures.drop(0.05, percent=True), "5 points"),
        (figures.drop(0.05, percent=False), "0.05"),
    ],
)
def test_figures(text, expected):
    assert text == expected
