"""Proposals: which plan to try next. Optuna's multivariate TPE over one ordered integer a layer.

The seam to the study is narrow: `propose` gives a plan that no trial has yet, `observe` takes a finished trial. The
sampler draws on a copy of the study in memory, since drawing on a SQL study costs a commit a layer.
"""

import logging
import math
import random
import warnings
from collections.abc import Iterable, Sequence
from typing import Protocol

import optuna

from ranksearch.records import Plan, TrialRecord, TrialState
from ranksearch.space import SearchSpace
from ranksearch.study.mirror import directions, distributions, frozen_trial, values_of

__all__ = ["Sampler", "TPESampler"]

ASKS = 8  # asks after which a proposal that is already known gives way to a mutation of it


class Sampler(Protocol):
    def propose(self) -> Plan | None:
        """A plan that no trial has yet; None when the space holds no more."""
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
        self._seen: set[Plan] = set()
        self._asked: dict[Plan, int] = {}
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed)
        self._study = optuna.create_study(directions=directions(objectives), sampler=sampler)
        for record in history:
            self.observe(record)

    def propose(self) -> Plan | None:
        if len(self._seen) >= math.prod(self._space.sizes.values()):
            return None
        indices = {}
        for _ in range(ASKS):
            trial = self._study.ask(distributions(self._space))
            plan = self._space.plan(trial.params)
            if plan not in self._seen:
                self._seen.add(plan)
                self._asked[plan] = trial.number
                return plan
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            indices = dict(trial.params)
        return self._mutation(indices)

    def _mutation(self, indices: dict[str, int]) -> Plan:
        """A random walk from `indices`, one layer a step, until a plan is new."""
        sizes = self._space.sizes
        while (plan := self._space.plan(indices)) in self._seen:
            layer = self._random.choice(list(sizes))
            indices[layer] = self._random.randrange(sizes[layer])
        self._seen.add(plan)
        return plan

    def observe(self, record: TrialRecord) -> None:
        plan = record.spec.plan
        self._seen.add(plan)
        if record.state is TrialState.RUNNING:
            return
        asked = self._asked.pop(plan, None)
        if asked is None:
            self._study.add_trial(frozen_trial(record, self._space, self._objectives))
        else:
            trial = frozen_trial(record, self._space, self._objectives)
            self._study.tell(asked, values_of(record, self._objectives), state=trial.state)
