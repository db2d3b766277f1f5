"""`doctor` on a model with every sort of layer: each has its methods, or its reason to stay dense."""

import json

import pytest

from ranksearch.factorize import METHODS

ZOO = """
import torch
from torch import nn


class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.volume = nn.Conv3d(1, 2, 3, padding=1)
        self.recurrent = nn.GRU(8, 16, batch_first=True)
        self.embedding = nn.Embedding(9, 16)
        self.plain = nn.MultiheadAttention(16, 2, batch_first=True)
        self.sizes = nn.MultiheadAttention(16, 2, kdim=8, vdim=8, batch_first=True)
        self.extended = nn.MultiheadAttention(16, 2, add_bias_kv=True, batch_first=True)
        self.depthwise = nn.Conv1d(16, 16, 3, padding=1, groups=16)
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)
        self.right.weight = self.left.weight
        self.head, self.unused = nn.Linear(16, 4), nn.Linear(3, 3)
        self.token = nn.Parameter(torch.zeros(16))

    def forward(self, x):
        x = self.volume(self.grouped(self.conv(x))[:, :1, None])[:, 0, 0]
        y = self.recurrent(x)[0] + self.embedding(torch.arange(8)) + self.token
        y = self.plain(y, y, y)[0] + self.sizes(y, x, x)[0]
        y = self.depthwise(self.extended(y, y, y)[0].mT).mT
        return self.head(self.right(self.left(y)).mean(1))
"""
SHARED = "it shares a parameter with another module"
REASONS = {
    "volume": "no method takes Conv3d layers",
    "recurrent": "no method takes GRU layers",
    "embedding": "no method takes Embedding layers",
    "extended": "no method takes attention with add_bias_kv or add_zero_attn",
    "extended.out_proj": "MultiheadAttention reads its weight directly",
    "left": SHARED,
    "right": SHARED,
    "unused": "never called in a forward pass; its weight may be used directly",
}
TAKEN = {
    "conv": "channel_svd",
    "grouped": "spatial_svd",
    "plain.in_proj": "svd",
    "plain.out_proj": "svd",
    "head": "svd",
}
TAKEN |= {f"sizes.{part}": "svd" for part in ("q_proj", "k_proj", "v_proj", "out_proj")}


@pytest.fixture
def doctor(fresh, ranksearch):
    (fresh / "zoo.py").write_text(ZOO)
    (fresh / "ranksearch.toml").write_text('model = "zoo.py:Zoo"\ndata = "npz:data.npz"\n')
    return lambda *words: ranksearch("doctor", *words)


def test_every_layer_has_its_methods_or_its_reason(doctor):
    code, out, _ = doctor("--format", "json")
    rows = {row["layer"]: row for row in json.loads(out)["layers"]}
    assert code == 0
    assert set(rows) == {*REASONS, *TAKEN, "depthwise"}
    assert {name: rows[name]["skipped"] for name in REASONS} == REASONS
    assert not any(rows[name]["methods"] for name in REASONS)
    assert all(TAKEN[name] in rows[name]["methods"] and rows[name]["skipped"] is None for name in TAKEN)


def test_a_layer_that_no_method_takes_has_the_reasons_of_all_and_no_false_advice(doctor):
    row = next(r for r in json.loads(doctor("--format", "json")[1])["layers"] if r["layer"] == "depthwise")
    assert row["methods"] == []
    assert row["skipped"].count("it is depthwise: a group has no channels to mix") == 1
    assert "; use " not in row["skipped"]
    assert "svd" in row["skipped"]


def test_the_table_shows_them(doctor, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    text = doctor()[1]
    for reason in REASONS.values():
        assert f"stays dense: {reason}" in text
    assert "16→48" in text


def test_what_a_method_does_not_take_has_its_reason_too(doctor):
    rows = {row["layer"]: row for row in json.loads(doctor("--format", "json")[1])["layers"]}
    for name in TAKEN:
        assert set(rows[name]["methods"]) | set(rows[name]["refused"]) == set(METHODS)
    assert "groups" in rows["grouped"]["refused"]["tt_conv_naive"]
    out = doctor()[1]
    assert "svd not for conv and 1 more: its kernel is larger than 1×1\n" in out
    assert "tt_conv, tt_conv_naive not for grouped: it has groups\n" in out
