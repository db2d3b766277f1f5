"""`bench` and `compare`: what is printed of measurements, and what becomes of an exported model."""

import csv
import io
import json
import sqlite3
from dataclasses import replace

import pytest

from ranksearch.database import Database
from ranksearch.latency import fresh, selftest
from ranksearch.latency.selftest import Check
from ranksearch.study.study import Study
from tests.cli.test_queries import STORAGE, rows_of_table

QUICK = ("--max-seconds", "0.05")


@pytest.fixture
def in_process(monkeypatch):
    """Measures here instead of in a fresh process, which takes seconds to start."""

    def measure(dense, candidate, example, config, *, device, seed, lock):
        return fresh._measure(dense, candidate, example, config, device, seed, lock)

    monkeypatch.setattr("ranksearch.study.remeasure.measure_fresh", measure)
    monkeypatch.setattr("ranksearch.latency.fresh.measure_fresh", measure)


def test_a_trial_in_a_fresh_process(project, ranksearch):
    """The user's own module is there as well."""
    before = Study.open("toy", STORAGE).trials()
    code, out, err = ranksearch("bench", "2", *QUICK, "--format", "json")
    assert code == 0, err
    (row,) = json.loads(out)
    after = Study.open("toy", STORAGE).trials()
    assert (row["trial"], row["batch_size"], row["threads"], row["shown"]) == (2, 8, 1, True)
    assert row["earlier_latency_ratio"] == before.latency_ratio[2]
    assert row["latency_ratio"] == after.latency_ratio[2] != before.latency_ratio[2]
    assert row["latency_ratio_low"] <= row["latency_ratio"] <= row["latency_ratio_high"]
    assert row["speedup"] == 1 / row["latency_ratio"]


def test_the_front_with_several_batch_sizes(project, ranksearch, in_process):
    study = Study.open("toy", STORAGE)
    front, before = set(study.pareto().index), study.trials().latency_ratio
    code, out, err = ranksearch("bench", "--front", "--batch-sizes", "1,2", *QUICK, "--format", "csv")
    assert code == 0, err
    rows = list(csv.DictReader(io.StringIO(out)))
    assert front <= {int(row["trial"]) for row in rows}
    assert [int(row["batch_size"]) for row in rows] == [1, 2] * (len(rows) // 2)
    assert {(row["shown"], row["agrees"]) for row in rows} == {("False", "")}  # the study's batch size is 8
    assert study.trials().latency_ratio.equals(before)


def test_the_table(project, ranksearch, in_process):
    code, out, err = ranksearch("bench", "1", "2", *QUICK)
    assert code == 0, err
    assert [line.split()[0] for line in rows_of_table(out)] == ["1", "2"]
    after = Study.open("toy", STORAGE).trials()
    for number, line in zip((1, 2), rows_of_table(out), strict=True):
        assert f"{after.speedup[number]:.2f}×" in line
        assert "agrees" in line or "differs" in line


def test_an_exported_model_is_measured_and_nothing_is_stored(project, ranksearch, in_process):
    assert ranksearch("export", "2", "--output", "small")[0] == 0
    size = len(_measurements())
    code, out, err = ranksearch(
        "bench", "small", "--model", "nets.py:net", "--batch-sizes", "2", *QUICK, "--format", "json"
    )
    assert code == 0, err
    (row,) = json.loads(out)
    assert (row["bundle"], row["batch_size"], row["shown"]) == ("small", 2, None)
    assert row["earlier_latency_ratio"] == Study.open("toy", STORAGE).trial(2).result.measurement.ratio
    assert len(_measurements()) == size


def _measurements():
    with sqlite3.connect("ranksearch.db") as connection:
        return connection.execute("SELECT id FROM rs_measurement").fetchall()


def test_an_export_of_a_model_that_only_its_maker_can_build(project, ranksearch, monkeypatch):
    assert ranksearch("export", "2", "--output", "small")[0] == 0
    (project / "ranksearch.toml").unlink()
    code, _, err = ranksearch("bench", "small")
    assert (code, "nets.py:net" in err, "--model" in err) == (2, True, True)
    code, _, err = ranksearch("bench", "small", "--model", "nets.py:wider")
    assert (code, "another one" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--front"),
        (("1", "--front"), "one of them"),
        (("1", "--self-test"), "one of them"),
        (("--self-test", "--threads", "2"), "--threads"),
        (("1", "small"), "'1 small'"),
        (("nowhere",), "'nowhere' is no export"),
        (("99",), "trial 99 is not in study"),
        (("1", "--batch-sizes", "1,,2"), "'1,,2'"),
        (("1", "--batch-sizes", "0"), "at least 1"),
        (("1", "--backend", "eagr"), "did you mean 'eager'"),
        (("1", "--threads", "0"), "threads is 0"),
        (("1", "--device", "gpu"), "auto, cpu, cuda"),
        (("1", "--model", "nets.py:wider"), "does not fit the model"),
    ],
)
def test_one_line_says_what_is_wrong(project, ranksearch, words, said):
    size = len(_measurements())
    code, out, err = ranksearch("bench", *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert said in err
    assert len(_measurements()) == size


def check(test: str, value: float | None) -> Check:
    return Check(test=test, value=value, at_least=0.5, num_done=1, num_wanted=1, note="a note", seconds=1.0)


@pytest.mark.parametrize(("values", "code"), [((0.6, 0.7), 0), ((0.6, 0.4), 1), ((0.6, None), 1)])
def test_self_test_prints_a_line_a_test_and_fails_where_one_is_missed(ranksearch, monkeypatch, values, code):
    checks = [check(f"test {place}", value) for place, value in enumerate(values)]
    monkeypatch.setattr(selftest, "self_test", lambda subject, *, device, lock: iter(checks))
    monkeypatch.setattr("ranksearch.study.specimens.specimens", lambda task: None)
    monkeypatch.setattr("ranksearch.tasks.build_task", lambda: None)
    found, out, err = ranksearch("bench", "--self-test")
    assert found == code
    assert ["MISSED" in line for line in rows_of_table(out)] == [value is None or value < 0.5 for value in values]
    assert ("1 of 2 tests missed: test 1" in err) is (code == 1)
    rows = json.loads(ranksearch("bench", "--self-test", "--format", "json")[1])
    assert [(row["value"], row["passed"]) for row in rows] == [
        (value, value is not None and value >= 0.5) for value in values
    ]


# --- compare ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(project):
    """A second study: the same plans measured twice as fast with two threads."""
    with Database.open(STORAGE) as database:
        toy = database.load_study("toy")
        database.save_study(
            replace(toy, name="twin", fingerprint={**toy.fingerprint, "latency threads": "2", "seed": "1"})
        )
        twin = database.load_study("twin")
        for trial in database.trials("toy")[:5]:
            spec = replace(trial.spec, study=twin.key)
            _copy(database, trial, spec)
    return project


def _copy(database, trial, spec):
    from ranksearch.records import TrialState, key_of

    measured = trial.result.measurement
    ends = {name: getattr(measured, name) / 20 for name in ("ratio", "ratio_low", "ratio_high")}
    measured = replace(measured, **(ends if trial.number == 1 else {}))
    started = replace(trial, spec=spec, state=TrialState.RUNNING, result=None, finished=None)
    database.start_trial("twin", started)
    result = replace(trial.result, key=key_of(spec), measurement=measured)
    database.finish_trial("twin", trial.number, result, trial.finished)


def test_compare(two, ranksearch):
    code, out, err = ranksearch("compare", "toy", "twin", "--format", "json")
    assert code == 0, err
    found = json.loads(out)
    assert found["differences"] == {"threads": ["1", "2"]}
    faster = {row["trial_b"]: row["faster"] for row in found["plans"]}
    assert faster == {0: "tie", 1: "b", 2: "tie", 3: "tie", 4: "tie"}
    assert [best["study"] for best in found["fastest"]] == ["a"] * 3 + ["b"] * 3
    assert len(rows_of_table(ranksearch("compare", "toy", "twin")[1])) == 6
    rows = list(csv.DictReader(io.StringIO(ranksearch("compare", "twin", "toy", "--format", "csv")[1])))
    assert [row["faster"] for row in rows].count("a") == 1
    assert len(rows) == 5


def test_compare_with_another_database(two, ranksearch):
    (two / "other").mkdir()
    (two / "ranksearch.db").rename(two / "other" / "b.db")
    with Database.open("sqlite:///other/b.db", create=False) as database:
        study = database.load_study("toy")
    with Database.open(STORAGE) as database:
        database.save_study(study)
    code, out, _ = ranksearch("compare", "toy", "twin", "--storage-b", "sqlite:///other/b.db", "--format", "json")
    assert (code, json.loads(out)["plans"]) == (0, [])
    assert ranksearch("compare", "toy", "twin")[0] == 2


def test_compare_says_what_is_wrong(two, ranksearch):
    with Database.open(STORAGE) as database:
        toy = database.load_study("toy")
        database.save_study(replace(toy, name="foreign", fingerprint={**toy.fingerprint, "weights": "f" * 64}))
    for words, said in ((("toy", "twim"), "did you mean 'twin'"), (("toy", "foreign"), "weights hash")):
        code, out, err = ranksearch("compare", *words)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert said in err
