"""Proposals: which plan to try next. Any Optuna sampler over one ordered integer a layer, and the recipe.

The seam to the study is narrow: `propose` gives a plan that no trial has yet, `observe` takes a finished trial. The
sampler draws on a copy of the study in memory, since drawing on a SQL study costs a commit a layer.
"""

import logging
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from ranksearch.errors import ConfigError
from ranksearch.records import Proposal, TrialRecord, TrialState, nearest
from ranksearch.records.profile import Profile
from ranksearch.space import SearchSpace
from ranksearch.study.additive import AdditiveSampler, need_latency
from ranksearch.study.mirror import (
    EXPECTED,
    directions,
    distributions,
    expected_of,
    frozen_trial,
    proposal_of,
    values_of,
)

__all__ = ["SAMPLERS", "OptunaSampler", "Sampler", "make_sampler"]

SAMPLERS = ("additive", "tpe", "nsga2", "gp", "random")
ASKS = 8  # asks after which a proposal that is already known gives way to a mutation of it
POPULATION = 20  # of NSGA-II: ten generations in a budget of 200; Optuna's 50 would leave four


class Sampler(Protocol):
    def propose(self) -> Proposal | None:
        """What no trial has yet; None when the space holds no more."""
        ...

    def observe(self, record: TrialRecord) -> None: ...


def make_sampler(
    name: str,
    space: SearchSpace,
    objectives: Sequence[str],
    *,
    seed: int,
    history: Iterable[TrialRecord],
    profile: Profile | None = None,
    max_drop: float | None = None,
    min_speedup: float | None = None,
) -> Sampler:
    """The sampler of a name of SAMPLERS. `history` is every trial so far, running ones included.

    The same history and seed give the same proposals. `profile` is what `additive` starts from, others do without it.
    `max_drop` (of accuracy, below the dense model's) and `min_speedup` are constraints; `random` knows none. Raises
    ConfigError on another name, on a sampler that needs what is not installed, on a speed-up without latency.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"sampler is {name!r}{nearest(name, SAMPLERS)}; it must be one of {', '.join(SAMPLERS)}")
    need_latency(min_speedup, objectives)
    history = list(history)
    if name == "additive":  # draws by the trial's number: a resumed run goes on as if it had not ended
        sampler: BaseSampler = AdditiveSampler(
            space, objectives, profile=profile, seed=seed, max_drop=max_drop, min_speedup=min_speedup
        )
    else:  # a resumed run must not repeat the first run's draws
        seed = hash((seed, len(history))) % 2**32
        sampler = _optuna_s(name, seed)
    limits = {"max_drop": max_drop, "min_speedup": min_speedup}
    return OptunaSampler(space, objectives, sampler, seed, history, {k: v for k, v in limits.items() if v is not None})


def _optuna_s(name: str, seed: int) -> BaseSampler:
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        if name == "tpe":
            return TPESampler(multivariate=True, constant_liar=True, seed=seed)
        if name == "nsga2":
            return NSGAIISampler(population_size=POPULATION, seed=seed)
        if name == "random":
            return RandomSampler(seed=seed)
        if find_spec("scipy") is None:
            raise ConfigError("sampler is 'gp', which needs scipy; pip install scipy, or choose another sampler")
        return GPSampler(seed=seed)


class OptunaSampler:
    """`sampler` on a study of its own in memory. `history` is every trial so far, running ones included.

    `limits`: the constraints `max_drop` and `min_speedup`, written to the study as Optuna's constraints.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[str],
        sampler: BaseSampler,
        seed: int,
        history: Iterable[TrialRecord],
        limits: Mapping[str, float],
    ) -> None:
        optuna.logging.set_verbosity(logging.WARNING)
        self._space, self._objectives, self._limits = space, tuple(objectives), limits
        self._random = random.Random(seed)
        self._seen: set[Proposal] = set()
        self._asked: dict[Proposal, optuna.Trial] = {}
        self._dense_accuracy: float | None = None
        self._study = optuna.create_study(directions=directions(objectives), sampler=sampler)
        for record in history:
            self.observe(record)

    def propose(self) -> Proposal | None:
        if len(self._seen) >= self._space.num_proposals:
            return None
        params = {}
        for _ in range(ASKS):
            trial = self._study.ask(distributions(self._space))
            proposal = proposal_of(trial.params, self._space)
            if proposal not in self._seen:
                self._seen.add(proposal)
                self._asked[proposal] = trial
                return proposal
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            params = dict(trial.params)
        return self._mutation(params)

    def _mutation(self, params: dict[str, Any]) -> Proposal:
        """A random walk from `params`, one of them a step, until a proposal is new."""
        choices = distributions(self._space)
        while (proposal := proposal_of(params, self._space)) in self._seen:
            name = self._random.choice(list(choices))
            params[name] = self._drawn(choices[name])
        self._seen.add(proposal)
        return proposal

    def _drawn(self, choices: BaseDistribution) -> Any:
        if isinstance(choices, CategoricalDistribution):
            return self._random.choice(choices.choices)
        assert isinstance(choices, IntDistribution)
        return self._random.randint(choices.low, choices.high)

    def observe(self, record: TrialRecord) -> None:
        if record.recipe is None:
            return  # trained for longer, by a recipe of its own: nothing to learn a proposal's worth from
        proposal = self._space.proposal(record.spec.plan, record.recipe)
        self._seen.add(proposal)
        if record.state is TrialState.RUNNING:
            if proposal not in self._asked:  # a seed or a retry: the next proposal should know that it runs
                self._study.enqueue_trial(frozen_trial(record, self._space, self._objectives).params)
                self._asked[proposal] = self._study.ask(distributions(self._space))
            return
        trial = self._asked.pop(proposal, None)
        if trial is None:
            found = frozen_trial(record, self._space, self._objectives, self._constraints(record))
            if isinstance(self._study.sampler, NSGAIISampler):
                # It breeds from trials of a generation alone: what was not asked of it is of its first.
                found.system_attrs[self._study.sampler._get_generation_key()] = 0
            self._study.add_trial(found)
            return
        for name, excess in self._constraints(record).items():
            trial.set_constraint(name, excess)
        if expected := expected_of(record, self._objectives):
            trial.set_user_attr(EXPECTED, expected)
        state = frozen_trial(record, self._space, self._objectives).state
        self._study.tell(trial, values_of(record, self._objectives), state=state)

    def _constraints(self, record: TrialRecord) -> dict[str, float]:
        """How far a complete trial is beyond each limit: above 0 it breaks it. The drop only once the dense model's
        accuracy is known."""
        if values_of(record, self._objectives) is None or record.result is None:
            return {}
        accuracy = record.result.value_of("accuracy")
        if not record.spec.plan:
            self._dense_accuracy = accuracy
        excess = {}
        if "max_drop" in self._limits and self._dense_accuracy is not None:
            excess["max_drop"] = self._dense_accuracy - accuracy - self._limits["max_drop"]
        if "min_speedup" in self._limits:
            excess["min_speedup"] = record.result.value_of("latency") - 1 / self._limits["min_speedup"]
        return excess
