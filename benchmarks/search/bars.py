"""What is asked of our search, and what was found."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median

from benchmarks.hypervolume import hypervolume
from benchmarks.search.figures import FROM, Curve, Pair, after, by, curve, done_at, latest_lead, most_ahead, value_at
from benchmarks.search.race import Run
from benchmarks.search.report import Found, Front
from benchmarks.search.searchers import ALL_RULES, OURS, UNIFORM
from ranksearch.latency.selftest import Check

__all__ = ["bars", "lead_at_equal_trials", "on_test"]

# trials -> how many times the hypervolume that the whole uniform sweep ends with
AGAINST_UNIFORM = {5: 1.2, 15: 1.28, 60: 1.31}
OF_UNION, AT = 0.99, 200
AGAINST_RULES = 1.10


def bars(found: Found) -> list[Check]:
    return [*_levels(found), *_peers(found), *_unseen(found)]


def _check(test: str, value: float | None, note: str, found: Found, **bounds: float) -> Check:
    num = len(found.of(OURS))
    return Check(test=test, value=value, note=note, num_done=num, num_wanted=num, seconds=0.0, **bounds)


# --- levels: of the net with several seeds ---------------------------------------------------------------------------


def _levels(found: Found) -> Iterator[Check]:
    if len(found.of(OURS)) < 2:
        return
    ours, uniform = _curves(found, OURS), _curves(found, UNIFORM)
    for num, least in AGAINST_UNIFORM.items():
        times = [value_at(our, num) / rule[-1] for our, rule in zip(ours, uniform, strict=True)]
        note = f"of {len(times)} seeds {min(times):.3f} to {max(times):.3f}"
        name = f"hypervolume after {num} trials, times that of the whole uniform sweep"
        yield _check(name, median(times), note, found, at_least=least)
    num = min(AT, max(len(run.ratios) for run in found.of(OURS)))
    shares = [_share_of_union(found, run.seed, num) for run in found.of(OURS) if len(run.ratios) >= num]
    name = f"hypervolume after {num} trials, share of that of all trials made" + f" (asked of {AT})" * (num < AT)
    yield _check(name, median(shares), f"{len(shares)} seeds", found, at_least=OF_UNION)


def _share_of_union(found: Found, seed: int, num: int) -> float:
    runs = [run for run in found.runs if run.seed == seed]
    union = [pair for run in runs for pair in zip(run.ratios, run.accuracies, strict=True)]
    (ours,) = (run for run in runs if run.searcher == OURS)
    return curve(ours, found.dense["validation"])[num] / hypervolume(union, found.dense["validation"])


def _curves(found: Found, searcher: str) -> list[Curve]:
    return [curve(run, found.dense["validation"]) for run in found.of(searcher)]


# --- peers: at equal trials and at equal seconds ---------------------------------------------------------------------


def _peers(found: Found) -> Iterator[Check]:
    value, name, num = lead_at_equal_trials(found)
    note = f"nearest: {name} after {num}"
    yield _check(f"the best peer's lead at equal trials, from {FROM} on", value, note, found, at_most=0.0)
    if found.again:
        note = f"{name} after {num}, both in fresh processes"
        yield _check("the same lead, latencies measured again", _lead_again(found, name, num), note, found)

    by_seconds, paid, ours = _pairs(found, by), found.profile_seconds, found.of(OURS)
    fifth = median(run.seconds[FROM - 1] for run in ours)
    moments = sorted({second for run in found.runs for second in run.first(found.budget).seconds})
    value, name, moment = most_ahead([moment for moment in moments if moment >= fifth], by_seconds)
    note = f"nearest: {name} at {moment:.0f} s; the profile took {paid:.0f} s, our trial {FROM} ended at {fifth:.0f} s"
    test = f"the best peer's lead at equal seconds, the profile's counted, from our trial {FROM} on"
    yield _check(test, value, note, found, at_most=0.0)

    last = latest_lead([paid, *(moment for moment in moments if moment >= paid)], by_seconds)
    done = 0 if last is None else 1 + median(done_at(run, last) for run in ours)
    note = "nobody is ahead once it is paid" if last is None else f"the last of them at {last:.0f} s"
    test = "our first trial behind the profile at which nobody is ahead any more, at equal seconds"
    yield _check(test, done, note, found, at_most=FROM)


def lead_at_equal_trials(found: Found) -> tuple[float, str, int]:
    """How far a peer is ahead at most, who, and after how many trials."""
    value, name, num = most_ahead(range(FROM, found.budget + 1), _pairs(found, after))
    return value, name, int(num)


def _lead_again(found: Found, name: str, num: int) -> float:
    pair = [
        after([run for run in found.again if run.searcher == who], found.dense["validation"]) for who in (name, OURS)
    ]
    return most_ahead([num], {name: (pair[0], pair[1])})[0]


def _pairs(found: Found, figure: Callable[[Sequence[Run], float], Callable[[float], float]]) -> dict[str, Pair]:
    """Of every peer and of ours with the same seeds, none beyond the budget."""
    runs = {name: [run.first(found.budget) for run in found.of(name)] for name in found.searchers}
    ours, dense = runs.pop(OURS), found.dense["validation"]
    seeds = {name: {run.seed for run in of_peer} for name, of_peer in runs.items()}
    return {
        name: (figure(of_peer, dense), figure([run for run in ours if run.seed in seeds[name]], dense))
        for name, of_peer in runs.items()
    }


# --- the net that nobody has tuned for -------------------------------------------------------------------------------


def _unseen(found: Found) -> Iterator[Check]:
    fronts = {front.searcher: front for front in found.fronts}
    if not found.is_unseen or not {OURS, ALL_RULES} <= fronts.keys():
        return
    ours, rules = (on_test(fronts[name], found) for name in (OURS, ALL_RULES))
    test = f"hypervolume after {found.budget} trials, times that of all closed-form rules together"
    note = "on the test split, latencies measured again in fresh processes"
    yield _check(test, ours / rules, note, found, at_least=AGAINST_RULES)


def on_test(front: Front, found: Found) -> float:
    ratios = front.fresh or front.ratios
    return hypervolume(zip(ratios, front.test_accuracies, strict=True), found.dense["test"])
