"""Jobs: searchers side by side, each in a process on cores of its own, on a machine that has many.

What one evaluates the others do not know: a plan that several propose is measured and trained by each. All of it comes
together in the arena's folder afterwards, as if one process had done it. Each process has locks of its own, as if it
were alone on its cores; memory is what they still share.
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from time import monotonic

from benchmarks.search.kept import Kept

__all__ = ["Job", "side_by_side"]

log = logging.getLogger("benchmarks.search")

Job = tuple[str, int]  # searcher and seed


def side_by_side(
    jobs: Sequence[Job], folder: Path, command: Sequence[str], cores: Sequence[Sequence[int]], seconds: float
) -> None:
    """All jobs, the first first, for `seconds` at most; what they have kept by then is in the arena's `folder`.

    cores: of each process. command: module and arguments that race one job, given --only and --kept.
    """
    places: SimpleQueue[Sequence[int]] = SimpleQueue()
    for place in cores:
        places.put(place)
    end = monotonic() + seconds

    def run(job: Job) -> Path:
        place = places.get()
        mine = folder.parent / "jobs" / f"{job[0]}-{job[1]}".replace(" ", "-")
        shutil.copytree(folder, mine / folder.name, dirs_exist_ok=True)
        code = _ended([*command, "--only", f"{job[0]}:{job[1]}", "--kept", str(mine)], place, mine, end)
        log.info("%s, seed %d: %s", *job, "ended" if code == 0 else f"exit code {code}")
        places.put(place)
        return mine / folder.name

    with ThreadPoolExecutor(len(cores)) as pool:
        for found in pool.map(run, jobs):
            _take_over(found, folder)


def _ended(command: Sequence[str], cores: Sequence[int], folder: Path, end: float) -> int:
    """The exit code of a process on these cores."""
    (folder / "tmp").mkdir(exist_ok=True)  # where device locks lie
    pinned = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", *command]
    with (folder / "log").open("w") as output:
        process = subprocess.Popen(
            pinned, stdout=output, stderr=output, env={**os.environ, "TMPDIR": str(folder / "tmp")}
        )
        try:
            return process.wait(max(1.0, end - monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _take_over(source: Path, folder: Path) -> None:
    """The answers that `folder` lacks."""
    for file in source.glob("*.jsonl"):
        target = Kept(folder / file.name)
        for name, answer in Kept(file).items():
            if target.get(name) is None:
                target.put(name, answer)
