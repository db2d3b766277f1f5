"""`profile` and `profile --per-layer` on a user's project, in every format."""

import csv
import io
import json

import pytest


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


def test_the_profile_has_every_option_and_a_verdict(fresh, ranksearch):
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
    code, out, _ = ranksearch(*words)
    assert out.splitlines()[0].split()[:4] == ["layer", "option", "latency", "±"]
    assert len(out.strip().splitlines()) == len(rows) + 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--space", "defualt"), "did you mean 'default'"),
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
