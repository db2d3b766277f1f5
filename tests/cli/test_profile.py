"""`profile` and `profile --per-layer` on a user's project, in every format."""

import csv
import io
import json
from dataclasses import replace

import pytest

from ranksearch.cli.profile import _steps
from ranksearch.database import Database
from ranksearch.profiling import latencies
from ranksearch.records import Staircase
from ranksearch.space import load_space
from ranksearch.study import profiles


def test_the_table_in_json_has_every_figure(fresh, ranksearch):
    code, out, err = ranksearch(
        *("profile", "--per-layer", "--kept", "0.3", "--match", "[35]", "--together", "*", "--format", "json")
    )
    assert code == 0
    rows = json.loads(out)
    assert [row["layer"] for row in rows] == ["3", "5", "*"]
    assert rows[0]["plan"]["3"].startswith("spatial_svd:")
    assert rows[2]["plan"] == rows[0]["plan"] | rows[1]["plan"]
    for row in rows:
        assert 0 < row["weights_kept"] <= 0.3
        assert row["speedup"] == pytest.approx(1 / row["latency_ratio"])
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    assert len({round(row["accuracy"] - row["accuracy_change"], 9) for row in rows}) == 1
    assert "5 (2 of 3)" in err


def test_tables_and_csv(fresh, ranksearch):
    words = ("profile", "--per-layer", "--method", "channel_svd", "--kept", "0.5", "--match", "5")
    code, out, _ = ranksearch(*words)
    assert code == 0
    header, _, row = out.strip().splitlines()
    assert header.split() == ["layer", "becomes", "accuracy", "change", "speed-up", "weights", "kept"]
    assert row.split()[:2][0] == "5"
    assert "channel_svd:" in row
    assert row.rstrip().endswith("%")
    (found,) = csv.DictReader(io.StringIO(ranksearch(*words, "--format", "csv")[1]))
    assert json.loads(found["plan"])["5"].startswith("channel_svd:")
    assert 0 < float(found["weights_kept"]) <= 0.5


def test_the_profile_has_every_option_and_a_verdict(fresh, ranksearch, monkeypatch):
    monkeypatch.setattr(latencies, "SAME", 99.0)  # however unsteady this machine is
    words = ("profile", "--profile-seconds", "0.5")
    code, out, err = ranksearch(*words, "--format", "json")
    assert code == 0
    rows = json.loads(out)
    assert {row["layer"] for row in rows} == {"3", "5"}
    for row in rows:
        assert row["latency_change"] > -1
        assert row["latency_deviation"] >= 0
        assert row["loss"] >= 0
        assert 0 <= row["error"] <= 1
        assert 0 < row["macs_kept"] <= 0.75
    assert "smallest latency ratio" in err or "nothing worth having" in err
    assert "taken over" not in err
    assert all(row["is_latency_measured"] and row["layer_ms"] > 0 for row in rows)
    code, out, err = ranksearch(*words)
    assert out.splitlines()[0].split()[:4] == ["layer", "option", "latency", "±"]
    assert len(out.strip().splitlines()) == len(rows) + 2
    assert "of the latency" in err
    assert f"{len(rows) - 2} of {len(rows)} options taken over" in err  # one a layer is timed again
    assert out.count(" ~-") + out.count(" ~+") == len(rows) - 2
    with Database.open("sqlite:///ranksearch.db", create=False) as database, database.reading() as connection:
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM rs_layer_latency").scalar() == len(rows)
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM rs_identity").scalar() == 1


def test_factors_are_those_of_the_first_recipe(fresh, ranksearch, monkeypatch):
    asked = []
    monkeypatch.setattr(profiles, "profiled", lambda bench, layers, measure, finetune, *_: asked.append(finetune))
    (fresh / "mine.yaml").write_text("name: mine\nrecipes: {a: {factors: fisher, calibration_examples: 9}, b: {}}\n")
    for words in (("--space", "mine.yaml"), ("--space", "mine.yaml", "--finetune-factors", "plain"), ()):
        ranksearch("profile", *words)
    assert [(config.factors, config.calibration_examples) for config in asked] == [
        *(("fisher", 9), ("plain", 9), ("fisher", 512))
    ]
    assert all(config.threads >= 1 for config in asked)


def test_the_picture(fresh, ranksearch):
    code, _, err = ranksearch("profile", "--profile-seconds", "0.1", "--output", "profile.svg")
    assert code == 0
    assert err.rstrip().endswith("picture  profile.svg")
    assert "<svg" in (fresh / "profile.svg").read_text()


def test_steps_and_whether_the_space_knows_them():
    stairs = Staircase(shape="a layer", method="svd", ranks=(8, 9), latency_ms=(1.0, 2.0), step=8)
    space = load_space("default")
    steps, warning = _steps(stairs, space)
    assert "steps of 8 ranks here (svd on a layer)" in steps
    assert "tries multiples of 16; ranks.multiple: 8" in warning
    assert len(_steps(replace(stairs, step=16), space)) == 1
    assert "evenly" in _steps(replace(stairs, step=1), space)[0]
    assert _steps(None, space) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--space", "defualt"), "did you mean 'default'"),
        (("--output", "profile.gif"), "a picture is one of"),
        (("--per-layer", "--method", "svdd"), "did you mean 'svd'"),
        (("--per-layer", "--kept", "2"), "kept is 2"),
        (("--per-layer", "--match", "no"), "no layer matches 'no'"),
        (("--per-layer", "--match", "5", "--together", "no"), "'no' matches none"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(fresh, ranksearch, words, said):
    code, out, err = ranksearch("profile", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
