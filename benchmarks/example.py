"""The built-in example, as a newcomer runs it: `python -m benchmarks.example [--budget 200]`.

A subprocess runs `ranksearch run` in an empty folder with an empty cache; this process watches the memory of all that
it starts (sum of PSS, every three seconds) and reads the times from the database.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

import psutil

from benchmarks.machine import conditions, write
from ranksearch.database import Database

WORK = ("finetune", "recalibrate", "evaluate", "measure")


def run(folder: Path, budget: int, study: str) -> tuple[float, float, int]:
    """Seconds until the end, Unix time of the start, peak PSS in bytes of the whole process tree."""
    command = [sys.executable, "-m", "ranksearch", "run", "--budget", str(budget), "--study", study]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    started, peak = time.time(), 0
    with (folder / f"{study}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, pss(process.pid))
            time.sleep(3)
    if process.returncode != 0:
        raise SystemExit((folder / f"{study}.log").read_text()[-2000:])
    return time.time() - started, started, peak


def pss(root: int) -> int:
    """Proportional set size of a process and all below it: shared pages are counted once."""
    total = 0
    try:
        family = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def seconds_to_first_trial(folder: Path, study: str, started: float) -> float:
    with Database.open(f"sqlite:///{folder / 'ranksearch.db'}", create=False) as database:
        first = database.trial(study, 0).started
    return datetime.fromisoformat(first).timestamp() - started


def phases(folder: Path, study: str) -> dict[str, dict[str, float]]:
    """Median and quartiles over the trials, seconds: wall time from start to finish, each phase, and what is left."""
    with Database.open(f"sqlite:///{folder / 'ranksearch.db'}", create=False) as database:
        records = [r for r in database.trials(study) if r.result and r.origin != "dense"]
    rows: dict[str, list[float]] = {"wall": [], "overhead": []}
    for before, record in pairwise(records):
        # From one result to the next: all that a trial costs, proposing, sending and storing included.
        wall = (datetime.fromisoformat(record.finished) - datetime.fromisoformat(before.finished)).total_seconds()
        rows["wall"].append(wall)
        rows["overhead"].append(wall - sum(record.result.seconds.get(phase, 0.0) for phase in WORK))
        for phase in WORK:
            rows.setdefault(phase, []).append(record.result.seconds.get(phase, 0.0))
    return {name: {"median": median(v), "quartiles": quantiles(v)[::2], "n": len(v)} for name, v in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=int, default=200)
    budget = parser.parse_args().budget
    with tempfile.TemporaryDirectory() as name:
        folder, where = Path(name), conditions()
        total, _, peak = run(folder, budget, "first")
        _, started, _ = run(folder, 1, "second")  # the model is cached now
        write(
            "example",
            where
            | {
                "budget": budget,
                "seconds_total": total,
                "seconds_startup_without_training": seconds_to_first_trial(folder, "second", started),
                "peak_pss_gb": peak / 1e9,
                "seconds_per_trial": phases(folder, "first"),
                "targets": {"seconds_total": 360, "startup": 20, "overhead_median": 0.15, "peak_pss_gb": 2.5},
            },
        )


if __name__ == "__main__":
    main()
