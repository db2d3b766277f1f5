"""Proposals: which plan to try next. Optuna's multivariate TPE over one ordered integer a layer.

The seam to the study is narrow: `propose` gives a plan that no trial has yet, `observe` takes a finished trial. The
sampler draws on a copy of the study in memory, since drawing on a SQL study costs a commit a layer.
"""

import logging
import random
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from ranksearch.records import Proposal, TrialRecord, TrialState
from ranksearch.space import SearchSpace
from ranksearch.study.mirror import directions, distributions, frozen_trial, proposal_of, values_of

__all__ = ["Sampler", "TPESampler"]

ASKS = 8  # asks after which a proposal that is already known gives way to a mutation of it


class Sampler(Protocol):
    def propose(self) -> Proposal | None:
        """What no trial has yet; None when the space holds no more."""
        ...

    def observe(self, record: TrialRecord) -> None: ...


class TPESampler:
    """`history` is every trial so far, running ones included. The same history and seed give the same proposals."""

    def __init__(
        self, space: SearchSpace, objectives: Sequence[str], seed: int, history: Iterable[TrialRecord]
    ) -> None:
        optuna.logging.set_verbosity(logging.WARNING)
        history = list(history)
        # A resumed run must not repeat the first run's draws.
        seed = hash((seed, len(history))) % 2**32
        self._space, self._objectives = space, tuple(objectives)
        self._random = random.Random(seed)
        self._seen: set[Proposal] = set()
        self._asked: dict[Proposal, int] = {}
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed)
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
                self._asked[proposal] = trial.number
                return proposal
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
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
            return
        asked = self._asked.pop(proposal, None)
        if asked is None:
            self._study.add_trial(frozen_trial(record, self._space, self._objectives))
        else:
            trial = frozen_trial(record, self._space, self._objectives)
            self._study.tell(asked, values_of(record, self._objectives), state=trial.state)
