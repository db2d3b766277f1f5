"""Two workers on one host: what one measures, nothing of the other runs beside."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workers.neighbour import NUM_MEASURED

MEASURES = "time_pair"


@pytest.fixture(scope="module")
def spans(tmp_path_factory):
    """(work, start, end) of each worker, on one clock."""
    folder = tmp_path_factory.mktemp("host")
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.workers.neighbour", str(folder), name],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
        )
        for name in ("one", "other")
    ]
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    return [json.loads(output) for output in outputs]


def overlapping(spans):
    return [{one[0], other[0]} for one, other in itertools.product(*spans) if one[1] < other[2] and other[1] < one[2]]


def test_nothing_runs_beside_a_measurement(spans):
    for own in spans:
        assert sum(work == MEASURES for work, _, _ in own) == NUM_MEASURED
        assert {work for work, _, _ in own} == {MEASURES, "start", "train", "put_weights"}
    assert not [works for works in overlapping(spans) if MEASURES in works]


def test_trainings_run_beside_each_other(spans):
    assert {"train"} in overlapping(spans)
