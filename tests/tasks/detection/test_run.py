"""A search of the small detector by one command: a detector that knows 24 scenes by heart, judged on these."""

import dataclasses
import json
import tempfile

from ranksearch.cli import main
from ranksearch.tasks.detection import task as tasks

FACTORY = """
import dataclasses

from ranksearch.tasks.detection import small_ssd_task


def by_heart():
    task = small_ssd_task()
    return dataclasses.replace(task, validation=task.train)
"""
TOML = """
model = "detectors.py:by_heart"
space = "fastfaces"
executor = "inline"
budget = 6

[finetune]
steps = 2
batch_size = 12
threads = 1
precision = "float32"
layout = "contiguous"

[measure]
batch_size = 1
max_seconds = 0.05
min_blocks = 2
"""


def test_one_command_ends_with_a_front(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ranksearch.latency.protocol.MAX_WARMUP_SECONDS", 0.05)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tasks, "SCENES", {"train": 24, "calibration": 24, "validation": 2, "test": 2})
    monkeypatch.setattr(tasks, "SMALL", dataclasses.replace(tasks.SMALL, epochs=60, batch_size=12))
    (tmp_path / "detectors.py").write_text(FACTORY)
    (tmp_path / "ranksearch.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    assert main(["run"]) == 0
    capsys.readouterr()
    assert main(["trials", "--format", "json"]) == 0
    trials = json.loads(capsys.readouterr().out)
    assert [trial["state"] for trial in trials] == ["complete"] * 6
    assert trials[0]["accuracy"] > 0.8
    assert main(["pareto", "--format", "json"]) == 0
    front = json.loads(capsys.readouterr().out)
    assert len(front) >= 3
    assert {choice.partition(":")[0] for row in front for choice in row["plan"].values()} <= {"svd", "spatial_svd"}
