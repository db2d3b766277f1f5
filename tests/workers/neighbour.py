"""One of two workers on a host: `python -m tests.workers.neighbour FOLDER NAME`. Prints when it did what."""

import functools
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

import ranksearch.latency.measure  # noqa: F401 - the package shows the function under the module's name
from ranksearch import trial
from ranksearch.outbox import Outbox
from ranksearch.records import FinetuneConfig, LayerChoice, MeasureConfig, Plan, TrialSpec, TrialState
from ranksearch.workbench import Workbench
from tests.toy import toy_task
from tests.workers.made import KNOWN

NUM_MEASURED = 4
FINETUNE = FinetuneConfig(steps=6, precision="float32", layout="contiguous", threads=1, calibration_examples=64)
MEASURE = MeasureConfig(batch_size=2, max_seconds=0.2, half_width=1e-6, min_blocks=2, iterations_per_block=2)
MEASURING = sys.modules["ranksearch.latency.measure"]


def note(spans, owner, name):
    """From now on `owner.name` notes when it ran."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def noting(*args, **kwargs):
        start = time.monotonic()
        try:
            return function(*args, **kwargs)
        finally:
            spans.append((name, start, time.monotonic()))

    setattr(owner, name, noting)


def train_together(folder, name):
    """The next training waits, for as long as a minute, until the other worker trains."""
    train = trial.train

    def waiting(*args, **kwargs):
        (folder / f"{name}.training").touch()
        until = time.monotonic() + 60
        while len(list(folder.glob("*.training"))) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        return train(*args, **kwargs)

    return train, waiting


def spec(rank):
    plan = Plan({"conv1": LayerChoice(method="spatial_svd", ranks=(rank,))})
    return TrialSpec(study="s", plan=plan, seed=1, finetune=FINETUNE, measure=MEASURE)


def main(folder: Path, name: str) -> None:
    tempfile.tempdir = str(folder)  # the lock of a host of our own
    (folder / name).mkdir()
    bench, spans = Workbench(toy_task(), torch.device("cpu"), outbox=Outbox(folder / name)), []
    train, trial.train = train_together(folder, name)
    note(spans, trial, "train")
    results = [trial.run(spec(4), bench, KNOWN)]
    trial.train = train
    for owner, work in ((trial, "start"), (trial, "train"), (MEASURING, "time_pair"), (Outbox, "put_weights")):
        note(spans, owner, work)
    results += [trial.run(spec(rank), bench) for rank in range(5, 5 + NUM_MEASURED)]
    assert [result.state for result in results] == [TrialState.COMPLETE] * len(results), results
    json.dump(spans, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
