"""What a predicted loss costs in accuracy: `python -m benchmarks.half_loss --data cifar10.npz`.

The seeds' order rests on one curve for all nets, share of the accuracy kept = 1 / (1 + (loss / HALF_LOSS)^POWER). Here
it is fitted to the trials that `python -m benchmarks.search` has kept, net by net: the half loss that predicts best,
how far it and HALF_LOSS are off (root mean square, of the share), and how many of a search's seeds both give.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import conditions, write
from benchmarks.search.arena import Arena
from benchmarks.search.nets import NETS
from benchmarks.search.searchers import options_left
from benchmarks.subset import subset
from ranksearch.allocate import knapsack_seeds
from ranksearch.allocate.seeds import HALF_LOSS, kept_share
from ranksearch.records import LayerRecord, Plan, Profile
from ranksearch.study.creation import NUM_SEEDS

HALVES = np.geomspace(0.5, 50, 201)  # nats
CORES, VALIDATION, TEST, PROFILE_SECONDS = 2, 1000, 2000, 25.0  # of benchmarks.search, whose trials these are


def fitted(losses: np.ndarray, kept: np.ndarray) -> float:
    return float(min(HALVES, key=lambda half: off(losses, kept, half)))


def off(losses: np.ndarray, kept: np.ndarray, half: float) -> float:
    return float(np.sqrt(np.mean((kept_share(losses, half) - kept) ** 2)))


def points(arena: Arena, profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Of every trial that was raced and kept more than half: the sum of its options' losses, the share it kept."""
    loss_of = {(option.layer, option.choice): option.loss for option in profile.options}
    default = arena.recipes[0].name
    dense = arena.evaluate(Plan(), default, 0, number=0, origin="dense").result
    found: dict[tuple[Plan, int], tuple[float, float]] = {}
    for plan, recipe, seed in arena.raced():
        losses = [loss_of.get(point) for point in plan.items()]
        if recipe != default or None in losses:
            continue
        result = arena.evaluate(plan, recipe, seed, number=1, origin="kept").result
        if result and result.score and dense and dense.score and result.score.value > dense.score.value / 2:
            found[plan, seed] = sum(filter(None, losses)), result.score.value / dense.score.value
    losses, kept = np.array(list(found.values())).T
    return losses, kept


def measured(arena: Arena, profile: Profile) -> dict[str, Any]:
    losses, kept = points(arena, profile)
    half = fitted(losses, kept)
    left = options_left(arena, profile)
    ours, theirs = (_seeds(left, profile, h) for h in (HALF_LOSS, half))
    return {
        "n": len(losses),
        "half_loss": round(half, 2),
        "rms": round(off(losses, kept, half), 4),
        "rms_as_it_is": round(off(losses, kept, HALF_LOSS), 4),
        "seeds": len(ours),
        "seeds_in_common": len(set(ours) & set(theirs)),
        "first_five_in_common": len(set(ours[:5]) & set(theirs[:5])),
    }


def _seeds(layers: Sequence[LayerRecord], profile: Profile, half: float) -> list[Plan]:
    return [seed.plan for seed in knapsack_seeds(layers, profile, NUM_SEEDS, half_loss=half)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="an npz file of CIFAR-10")
    parser.add_argument("--kept", type=Path, default=Path(tempfile.gettempdir()) / "ranksearch-search")
    given = parser.parse_args()
    result: dict[str, Any] = conditions("cpu") | {"half_loss": HALF_LOSS}
    for name, net in NETS.items():
        task = net.task(given.data)
        task = subset(task, train=len(task.train), validation=VALIDATION, test=TEST)
        arena = Arena.of(task, given.kept, CORES)
        if not arena.num_kept:
            parser.error(f"no trials of {name} in {given.kept}; run python -m benchmarks.search first")
        result[name] = measured(arena, arena.profile(PROFILE_SECONDS)[0])
    write("half_loss", result)


if __name__ == "__main__":
    main()
