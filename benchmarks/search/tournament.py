"""All searchers on one net, and the best fronts on the test split."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.machine import conditions
from benchmarks.search.arena import CPU, Arena
from benchmarks.search.bars import lead_at_equal_trials
from benchmarks.search.figures import curve
from benchmarks.search.jobs import Job
from benchmarks.search.nets import Net
from benchmarks.search.race import Run, point, race
from benchmarks.search.report import Found, Front
from benchmarks.search.searchers import ALL_RULES, OURS, RULES, UNIFORM, Searcher, ours, peers, pruned, rules
from benchmarks.subset import subset
from ranksearch.evaluate import evaluate
from ranksearch.records import Plan, Profile, TrialRecord
from ranksearch.tasks import Task

__all__ = ["Counts", "tournament"]

log = logging.getLogger("benchmarks.search")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Images that trials and fronts are scored on, seconds for latencies and for losses each, cores to train on."""

    validation: int
    test: int
    profile_seconds: float
    cores: int


Raced = tuple[Run, list[TrialRecord]]
Apart = Callable[[list[Job], Path], None]  # jobs, the arena's folder


def tournament(
    net: Net, data: Path, folder: Path, counts: Counts, apart: Apart | None = None, only: Job | None = None
) -> Found | None:
    """apart: races them elsewhere first, in the order given. only: races this one and returns nothing."""
    date, where = datetime.now(UTC), conditions("cpu")
    log.info("%s", net.title)
    task = net.task(data)
    start = perf_counter()  # without the training, which is kept for good
    task = subset(task, train=len(task.train), validation=counts.validation, test=counts.test)
    arena = Arena.of(task, folder, counts.cores)
    profile, pays = arena.profile(counts.profile_seconds)
    log.info("%d trials are known, the profile took %.0f s", arena.num_kept, pays)
    default = arena.recipes[0].name
    _, dense = point(arena.evaluate(Plan(), default, 0, number=0, origin="dense"))
    entries = _entries(net, arena, profile, pays)
    if only is not None:
        _raced(*next((s, seed) for s, seed in entries if (s.name, seed) == only), arena, dense)
        return None
    if apart is not None:
        apart([(searcher.name, seed) for searcher, seed in entries], arena.folder)
        arena = Arena.of(task, folder, counts.cores)  # with what others have kept
        arena.is_closed = True
    raced = [_raced(searcher, seed, arena, dense) for searcher, seed in entries]
    raced = [(run, trials) for run, trials in raced if trials]
    fronts = list(_fronts(arena, [(run.first(net.budget), trials[: net.budget]) for run, trials in raced], dense, net))
    searched = [layer for layer in arena.layers if layer.options]
    found = Found(
        title=net.title,
        date=date.isoformat(),
        minutes=(perf_counter() - start) / 60,
        num_kept=arena.num_kept,
        conditions=where,
        num_validation=len(task.validation),
        num_test=counts.test,
        parameters=arena.bench.dense_cost.parameters,
        macs=arena.bench.dense_cost.macs,
        num_layers=len(searched),
        num_options=sum(len(layer.options) for layer in searched),
        num_our_options=sum(len(layer.options) for layer in entries[0][0].layers),
        recipes=arena.recipes,
        measure=arena.measure,
        dense={"validation": dense, "test": _test_accuracy_of_dense(arena)},
        profile_seconds=pays,
        budget=net.budget,
        long_budget=net.long_budget,
        runs=tuple(run for run, _ in raced),
        fronts=tuple(fronts),
        is_unseen=net.is_unseen,
    )
    again = tuple(_again(arena, raced, found))
    return replace(found, again=again, minutes=(perf_counter() - start) / 60)


def _again(arena: Arena, raced: Sequence[Raced], found: Found) -> Iterator[Run]:
    """A lead of a few per cent may be the luck of a measurement."""
    lead, name, num = lead_at_equal_trials(found)
    seeds = {run.seed for run in found.of(name)}
    for run, trials in raced:
        if lead > 0 and run.searcher in (OURS, name) and run.seed in seeds:
            log.info("seed %d, %s is ahead after %d: %s once more", run.seed, name, num, run.searcher)
            ratios = tuple(arena.fresh_latency(trial.spec) for trial in trials[:num])
            yield replace(run.first(num), ratios=ratios)


def _has_trials(searcher: Searcher) -> bool:
    return searcher.sampler is not None or any(seed.plan for seed in searcher.seeds)


def _entries(net: Net, arena: Arena, profile: Profile, pays: float) -> list[tuple[Searcher, int]]:
    """Who races with which seed: what the bars are about first, then those with the most trials."""
    found = []
    for seed in range(net.seeds):
        found.append((ours(arena, profile, pays, net.budget, net.budget if seed else net.long_budget), seed))
        if seed:
            rest = [rules(arena)[0], *peers(arena, net.paired, net.budget)]
        else:
            rest = [*rules(arena), *peers(arena, net.samplers, net.budget)]
            rest += pruned(arena, profile, pays, net.pruned, net.budget)
        found += [(searcher, seed) for searcher in rest if _has_trials(searcher)]
    return sorted(found, key=lambda entry: (entry[0].name not in (OURS, UNIFORM), -entry[0].budget))


def _raced(searcher: Searcher, seed: int, arena: Arena, dense: float) -> Raced:
    run, trials = race(searcher, arena, seed)
    last = run.seconds[-1] if trials else 0.0
    log.info("seed %d, %s: %.4f after %d trials, %.0f s", seed, run.searcher, curve(run, dense)[-1], len(trials), last)
    return run, trials


def _test_accuracy_of_dense(arena: Arena) -> float:
    task: Task = arena.bench.task
    assert task.test is not None
    return evaluate(arena.bench.dense, task.test, task.metric, device=CPU).value


# --- fronts ----------------------------------------------------------------------------------------------------------


def _fronts(arena: Arena, raced: Sequence[Raced], dense: float, net: Net):
    """Of ours and of the best peer, for each seed; where nobody has tuned, also of all rules."""
    for run, trials in raced:
        if run.searcher in (OURS, _best_peer([run for run, _ in raced], dense)):
            yield _front(arena, run.searcher, run.seed, trials, net)
    if net.is_unseen:
        of_rules = [trial for run, trials in raced if run.searcher in RULES and run.seed == 0 for trial in trials]
        yield _front(arena, ALL_RULES, 0, of_rules, net)


def _best_peer(runs: Sequence[Run], dense: float) -> str:
    names = {run.searcher for run in runs} - {OURS}
    return max(sorted(names), key=lambda name: median(curve(r, dense)[-1] for r in runs if r.searcher == name))


def _front(arena: Arena, searcher: str, seed: int, trials: Sequence[TrialRecord], net: Net) -> Front:
    chosen = _undominated(trials)
    log.info("seed %d, the %d trials of the front of %s on the test split", seed, len(chosen), searcher)
    return Front(
        searcher=searcher,
        seed=seed,
        ratios=tuple(point(trial)[0] for trial in chosen),
        accuracies=tuple(point(trial)[1] for trial in chosen),
        test_accuracies=tuple(arena.test_accuracy(trial.spec) for trial in chosen),
        fresh=tuple(arena.fresh_latency(trial.spec) for trial in chosen) if net.is_unseen else (),
    )


def _undominated(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The fastest first."""
    found: list[TrialRecord] = []
    for trial in sorted(trials, key=lambda trial: (point(trial)[0], -point(trial)[1])):
        if point(trial)[1] > (point(found[-1])[1] if found else 0.0):
            found.append(trial)
    return found
