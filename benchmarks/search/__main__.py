"""Searches against each other: `python -m benchmarks.search --data cifar10.npz [--nets vit] [--page] [--smoke]`.

Every searcher proposes plans for one trained net, and every plan is a trial of the default space's recipes on the same
batches. Compared are the hypervolume of (latency ratio, validation accuracy) beyond (1, half of the dense net's
accuracy) and the fastest within 1, 2 and 5 points, after so many trials and after so many seconds, a profile's counted;
then the fronts on the test split.

What was evaluated once is not evaluated again, whoever asks, and is kept in the folder --kept, so that a killed
benchmark goes on where it was; empty that folder where the code has changed what a trial gives. Each net's part lies in
benchmarks/results/search/; --page writes docs/search.md's section from all of them and measures nothing. The machine
must do nothing else. --smoke tries every part with tiny counts on the trained nets and keeps no result.
"""

import argparse
import logging
import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.search import page
from benchmarks.search.jobs import Job, side_by_side
from benchmarks.search.nets import NETS, SMOKE
from benchmarks.search.report import save
from benchmarks.search.tournament import Counts, tournament

log = logging.getLogger("benchmarks.search")


def nets_of(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in NETS]:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}; the nets are {', '.join(NETS)}")
    return names


def job_of(text: str) -> Job:
    searcher, _, seed = text.rpartition(":")
    return searcher, int(seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="an npz file of CIFAR-10; Fashion-MNIST lies in its folder, or comes")
    parser.add_argument("--nets", type=nets_of, default=list(NETS), help=",".join(NETS))
    parser.add_argument("--validation", type=int, default=1000, help="images that a trial is scored on")
    parser.add_argument("--test", type=int, default=2000, help="images that fronts are scored on")
    parser.add_argument("--profile-seconds", type=float, default=25, help="for latencies and for losses, each")
    parser.add_argument("--kept", type=Path, default=Path(tempfile.gettempdir()) / "ranksearch-search")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--cores", type=int, default=2, help="that a searcher has (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="searchers side by side, each on --cores of its own")
    parser.add_argument("--job-seconds", type=float, default=math.inf, help="after which jobs are ended")
    parser.add_argument("--only", type=job_of, help=argparse.SUPPRESS)  # what a job is called with
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if given.page:
        page.put()
        return
    if given.data is None:
        parser.error("--data is missing")
    pairs = list(zip(*[iter(sorted(os.sched_getaffinity(0)))] * given.cores, strict=False))
    if not pairs or given.jobs > len(pairs):
        parser.error(f"{given.jobs} jobs of {given.cores} cores are wanted; {len(os.sched_getaffinity(0))} are there")
    os.sched_setaffinity(0, pairs[0])
    counts = Counts(
        validation=given.validation,
        test=given.test,
        profile_seconds=given.profile_seconds,
        cores=given.cores,
    )
    if given.smoke:
        counts = replace(counts, validation=200, test=200, profile_seconds=2)
    given_again = ["--data", str(given.data), "--validation", str(given.validation), "--test", str(given.test)]
    given_again += ["--profile-seconds", str(given.profile_seconds), "--cores", str(given.cores)]
    given_again += ["--smoke"] * given.smoke
    is_apart = given.jobs > 1 or math.isfinite(given.job_seconds)
    for name in given.nets:
        net = replace(NETS[name], **SMOKE) if given.smoke else NETS[name]

        def apart(jobs: list[Job], folder: Path, name: str = name) -> None:
            command = ["benchmarks.search", *given_again, "--nets", name]
            side_by_side(jobs, folder, command, pairs[: given.jobs], given.job_seconds)

        found = tournament(net, given.data, given.kept, counts, apart if is_apart else None, given.only)
        if found is None:
            return
        print(page.net_section(name, found))
        if not given.smoke:
            save(name, found, page.figures(found))


if __name__ == "__main__":
    main()
