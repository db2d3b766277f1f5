"""ranksearch beside the plain script, at equal seconds: `python -m benchmarks.versus_plain [--seconds 120]`.

Both start from the cached example model, each as a process of its own and alone on the machine; every second counts,
start-up included. Both fronts are measured again by ranksearch's protocol, so that a lucky timing does not count; their
accuracies stand as they were found.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import torch

from benchmarks.hypervolume import hypervolume
from benchmarks.machine import conditions, write
from ranksearch import latency
from ranksearch.compress import compress
from ranksearch.database import Database
from ranksearch.records import MeasureConfig, Plan, TrialState
from ranksearch.tasks.load import build_task

CPU = torch.device("cpu")


def plain(folder: Path, seconds: float) -> list[dict]:
    output = folder / "plain.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.peers.plain",
        str(seconds),
        f"sqlite:///{folder / 'plain.db'}",
        str(output),
    ]
    subprocess.run(command, check=True)
    return json.loads(output.read_text())


def ours(folder: Path, seconds: float) -> list[dict]:
    """A run that is stopped when its time is up; what had finished counts."""
    command = [sys.executable, "-m", "ranksearch", "run", "--budget", "100000", "--study", "ours"]
    started = time.time()
    with (folder / "ours.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(60)
    with Database.open(f"sqlite:///{folder / 'ranksearch.db'}", create=False) as database:
        trials = [t for t in database.trials("ours") if t.state is TrialState.COMPLETE]
    rows = [
        {
            "values": [t.result.value_of("latency"), t.result.value_of("accuracy")],
            "plan": t.spec.plan.to_json(),
            "seconds": datetime.fromisoformat(t.finished).timestamp() - started,
        }
        for t in trials
    ]
    return [row for row in rows if row["seconds"] <= seconds]


def front(rows: list[dict]) -> list[dict]:
    kept, best = [], 0.0
    for row in sorted(rows, key=lambda r: (r["values"][0], -r["values"][1])):
        if row["values"][1] > best:
            kept.append(row)
            best = row["values"][1]
    return kept


def remeasured(rows: list[dict]) -> list[tuple[float, float]]:
    task = example_task()
    config = latency.resolve(MeasureConfig(half_width=0.005, max_seconds=5), CPU)
    dense = latency.prepare(task.model, config, CPU)
    inputs = latency.prepare_inputs(task.example_input, config, CPU)
    points = []
    for row in rows:
        model = latency.prepare(compress(task.model, Plan.from_json(row["plan"])), config, CPU)
        found = latency.measure(dense, model, inputs, config, device=CPU, seed=0, lock=None)
        points.append((found.ratio, row["values"][1]))
    return points


def example_task():
    return build_task(model=None, weights=None, data=None, metric=None, normalize="dataset", seed=0, cache_dir=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    seconds = parser.parse_args().seconds
    where = conditions()
    task = example_task()  # trained and cached before the clock starts
    from ranksearch.evaluate import evaluate

    dense_accuracy = evaluate(task.model, task.validation, task.metric, device=CPU).value
    with tempfile.TemporaryDirectory() as name:
        rows = {"plain": plain(Path(name), seconds), "ranksearch": ours(Path(name), seconds)}
    result: dict = {"seconds": seconds, "dense_accuracy": dense_accuracy, "seed": 0}
    for who, found in rows.items():
        points = remeasured(front(found))
        result[who] = {
            "trials": len(found),
            "trials_per_minute": 60 * len(found) / seconds,
            "hypervolume": hypervolume(points, dense_accuracy),
            "front": sorted(points),
        }
    result["ratio_trials"] = result["ranksearch"]["trials"] / max(1, result["plain"]["trials"])
    result["ratio_hypervolume"] = result["ranksearch"]["hypervolume"] / max(1e-9, result["plain"]["hypervolume"])
    write("versus_plain", where | result)


if __name__ == "__main__":
    main()
