"""What a worker leaves behind is whole or absent."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from ranksearch.errors import StorageError
from ranksearch.outbox import Outbox
from ranksearch.records import TrialResult, TrialState

RESULT = TrialResult(key="0123456789abcdef", state=TrialState.FAILED, reason="why")


def test_a_result_comes_back_and_can_be_dropped(tmp_path):
    outbox = Outbox(tmp_path)
    assert outbox.result(RESULT.key) is None
    outbox.put_result(RESULT)
    assert outbox.result(RESULT.key) == RESULT
    outbox.drop_result(RESULT.key)
    outbox.drop_result(RESULT.key)
    assert outbox.result(RESULT.key) is None


@pytest.mark.parametrize("text", ["", "{", '{"key": "x"}', '{"key": "x", "state": "nonsense"}', "[]", '{"unknown": 1}'])
def test_a_damaged_result_is_none(tmp_path, text):
    (tmp_path / "k.json").write_text(text)
    assert Outbox(tmp_path).result("k") is None


def test_weights_come_back_exactly_and_damaged_ones_are_none(tmp_path):
    outbox, model = (
        Outbox(tmp_path),
        nn.Sequential(nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last), nn.BatchNorm2d(3)),
    )
    outbox.put_weights("k", model)
    for name, value in outbox.weights("k").items():
        assert torch.equal(value, model.state_dict()[name])
    path = tmp_path / "k.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert outbox.weights("k") is None
    assert outbox.weights("other") is None


def test_only_wanted_weights_are_kept_and_results_stay(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.put_result(RESULT)
    for key in "abc":
        outbox.put_weights(key, nn.Linear(1, 1))
    outbox.keep_weights({"b"})
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{RESULT.key}.json", "b.safetensors"]


def test_a_host_that_does_not_see_the_folder_leaves_nothing(tmp_path):
    Outbox(tmp_path / "elsewhere").put_result(RESULT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot write"):
        Outbox(tmp_path).put_result(RESULT)


def test_a_writer_killed_at_any_moment_leaves_old_or_new(tmp_path):
    code = f"""
import sys
from pathlib import Path
from ranksearch.outbox import Outbox
from ranksearch.records import TrialResult, TrialState
box = Outbox(Path({str(tmp_path)!r}))
n = 0
while True:
    box.put_result(TrialResult(key="k", state=TrialState.FAILED, reason=str(n) + "x" * 200_000))
    n += 1
    if n == 1:
        print("on", flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with writer:
        writer.stdout.readline()
        for _ in range(40):
            assert Outbox(tmp_path).result("k") is not None
            time.sleep(0.003)
        writer.send_signal(signal.SIGKILL)
    assert Outbox(tmp_path).result("k").reason.endswith("x" * 200_000)
