"""Searches against each other: `python -m benchmarks.search --data cifar10.npz [--budget 60] [--seeds 1]`.

Every searcher proposes plans for one trained net, and every plan is a trial of the same recipe on the same batches.
Compared are the hypervolume of (latency ratio, validation accuracy) beyond (1, half of the dense net's accuracy) after
so many evaluations, the fastest within 1, 2 and 5 points, and the seconds, a profile's counted. What was evaluated once
is not evaluated again, whoever asks, and is kept in the temporary folder, so that a killed benchmark goes on where it
was.
"""

import argparse
import logging
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cifar import trained_task
from benchmarks.hypervolume import hypervolume
from benchmarks.machine import conditions, write
from benchmarks.search.arena import Arena, points, seconds_of
from benchmarks.search.searchers import OBJECTIVES, Searcher, rules, searchers
from benchmarks.subset import subset
from ranksearch.records import Plan, TrialRecord
from ranksearch.space import SearchSpace
from ranksearch.study.sampler import make_sampler

log = logging.getLogger("benchmarks.search")

AFTER = (5, 15, 30, 60, 200)  # evaluations
DROPS = (0.01, 0.02, 0.05)
PROFILE_SECONDS = 25.0


def searched(searcher: Searcher, arena: Arena, budget: int) -> list[TrialRecord]:
    """Its trials, without the dense model's, which it knows and does not pay for."""
    dense = arena.evaluate(Plan(), 0, "dense")
    trials = [dense]
    plans = [seed for seed in searcher.seeds if seed.plan]
    for seed in plans[:budget]:
        trials.append(arena.evaluate(seed.plan, len(trials), seed.origin))
    if searcher.sampler is None:
        return trials[1:]
    sampler = make_sampler(
        searcher.sampler,
        SearchSpace(tuple(searcher.layers)),
        OBJECTIVES,
        seed=arena.spec.seed,
        history=trials,
        profile=searcher.profile,
    )
    while len(trials) <= budget and (proposal := sampler.propose()) is not None:
        trials.append(arena.evaluate(proposal.plan, len(trials), "sampler"))
        sampler.observe(trials[-1])
    return trials[1:]


def figures(searcher: Searcher, trials: list[TrialRecord], dense: float) -> dict[str, Any]:
    found = points(trials)
    marks = [n for n in AFTER if n <= len(trials)] or [len(trials)]
    return {
        "searcher": searcher.name,
        "trials": len(trials),
        "profile_seconds": searcher.pays,
        "seconds": searcher.pays + sum(map(seconds_of, trials)),
        "hypervolume": {n: hypervolume(points(trials[:n]), dense) for n in dict.fromkeys([*marks, len(trials)])},
        "fastest_within": {
            str(drop): min((ratio for ratio, accuracy in found if accuracy >= dense - drop), default=None)
            for drop in DROPS
        },
    }


def one_seed(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    task = subset(trained_task(args.data), train=20_000, validation=args.validation, test=2000)
    folder = Path(tempfile.gettempdir()) / "ranksearch-arena"
    arena = Arena.of("resnet9", task, seed, folder, cores=len(os.sched_getaffinity(0)))
    dense = points([arena.evaluate(Plan(), 0, "dense")])[0][1]
    profile, pays = arena.profile(PROFILE_SECONDS)
    rows = []
    for searcher in (*rules(arena), *searchers(arena, profile, pays, args.samplers, args.budget)):
        rows.append(figures(searcher, searched(searcher, arena, args.budget), dense))
        log.info("seed %d, %s: %s", seed, searcher.name, rows[-1]["hypervolume"])
    return rows


def summary(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians over seeds, and the spread of the hypervolume."""
    found = []
    for rows in zip(*runs, strict=True):
        last = [row["hypervolume"][row["trials"]] for row in rows]
        marks = [n for n in AFTER if all(n in row["hypervolume"] for row in rows)]
        found.append(
            {
                "searcher": rows[0]["searcher"],
                "hypervolume": {n: median(row["hypervolume"][n] for row in rows) for n in marks},
                "at the end": median(last),
                "from": min(last),
                "to": max(last),
                "trials": [row["trials"] for row in rows],
                "seconds": median(row["seconds"] for row in rows),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--validation", type=int, default=1000, help="images that a trial is scored on")
    parser.add_argument("--samplers", type=lambda text: text.split(","), default=["tpe", "nsga2", "random"])
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    runs = [one_seed(args, seed) for seed in range(args.seeds)]
    write(
        "search",
        conditions()
        | {"budget": args.budget, "seeds": args.seeds, "validation": args.validation}
        | {"summary": summary(runs), "runs": runs},
    )


if __name__ == "__main__":
    main()
