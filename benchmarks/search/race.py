"""A race: one searcher's trials in the arena, and when each of them ended."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from benchmarks.search.arena import Arena
from benchmarks.search.searchers import OBJECTIVES, Searcher
from ranksearch.records import Plan, Record, TrialRecord, TrialState
from ranksearch.study.sampler import make_sampler

__all__ = ["Run", "point", "race"]

NOTHING = (1.0, 0.0)  # latency ratio and accuracy of a trial that failed: no gain


@dataclass(frozen=True, kw_only=True, slots=True)
class Run(Record):
    """Of each trial the latency ratio, the accuracy on the validation split, and the second at which it ended: what the
    searcher pays before the first, all proposals and all trials until then. The dense model's is none of them: all know
    it and nobody pays for it."""

    searcher: str
    seed: int
    ratios: tuple[float, ...]
    accuracies: tuple[float, ...]
    seconds: tuple[float, ...]

    def first(self, num: int) -> "Run":
        return Run(
            searcher=self.searcher,
            seed=self.seed,
            ratios=self.ratios[:num],
            accuracies=self.accuracies[:num],
            seconds=self.seconds[:num],
        )


def race(searcher: Searcher, arena: Arena, seed: int) -> tuple[Run, list[TrialRecord]]:
    """As far as it went elsewhere, where the arena is closed."""
    if arena.is_closed:
        found, seconds = _as_noted(searcher, arena, seed)
        return run_of(searcher.name, seed, found, seconds), found
    found, seconds, second = [], [], searcher.pays
    for trial, proposal_seconds in _trials(searcher, arena, seed):
        second += proposal_seconds + (sum(trial.result.seconds.values()) if trial.result else 0.0)
        found.append(trial)
        seconds.append(round(second, 3))
        arena.note(searcher.name, seed, trial, seconds[-1])
    return run_of(searcher.name, seed, found, seconds), found


def _as_noted(searcher: Searcher, arena: Arena, seed: int) -> tuple[list[TrialRecord], list[float]]:
    found: list[TrialRecord] = []
    seconds: list[float] = []
    while len(found) < searcher.budget and (noted := arena.noted(searcher.name, seed, len(found) + 1)) is not None:
        plan, recipe, origin, second = noted
        found.append(arena.evaluate(plan, recipe, seed, number=len(found) + 1, origin=origin))
        seconds.append(second)
    return found, seconds


def run_of(searcher: str, seed: int, trials: Sequence[TrialRecord], seconds: Sequence[float]) -> Run:
    points = [point(trial) for trial in trials]
    return Run(
        searcher=searcher,
        seed=seed,
        ratios=tuple(round(ratio, 5) for ratio, _ in points),
        accuracies=tuple(round(accuracy, 5) for _, accuracy in points),
        seconds=tuple(seconds),
    )


def point(trial: TrialRecord) -> tuple[float, float]:
    if trial.state is not TrialState.COMPLETE or trial.result is None:
        return NOTHING
    return trial.result.value_of("latency"), trial.result.value_of("accuracy")


def _trials(searcher: Searcher, arena: Arena, seed: int) -> Iterator[tuple[TrialRecord, float]]:
    """Each with the seconds that its proposal took."""
    default = arena.recipes[0].name
    history = [arena.evaluate(Plan(), default, seed, number=0, origin="dense")]
    for given in [given for given in searcher.seeds if given.plan][: searcher.budget]:
        recipe = given.recipe or default
        history.append(arena.evaluate(given.plan, recipe, seed, number=len(history), origin=given.origin))
        yield history[-1], 0.0
    if searcher.sampler is None:
        return
    start = perf_counter()
    space, profile = arena.space(searcher.layers), searcher.profile
    sampler = make_sampler(searcher.sampler, space, OBJECTIVES, seed=seed, history=history, profile=profile)
    for number in range(len(history), searcher.budget + 1):
        proposal = sampler.propose()
        if proposal is None:
            return
        proposed = perf_counter()
        trial = arena.evaluate(proposal.plan, proposal.recipe, seed, number=number, origin="sampler")
        evaluated = perf_counter()
        sampler.observe(trial)
        yield trial, proposed - start
        start = evaluated
