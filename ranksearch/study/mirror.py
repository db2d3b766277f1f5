"""The study as Optuna keeps it, in the same SQL database: one row a trial, one ordered integer a layer, and the recipe.

Our own tables are written first and Optuna's follow; `catch_up` makes up for a driver that was killed in between. So
nothing here decides anything, and every Optuna tool can look at a running study.
"""

import logging
import types
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from ranksearch.database import Database, configure, engine_arguments
from ranksearch.errors import ConfigError
from ranksearch.records import OBJECTIVES, Proposal, StudyRecord, TrialRecord, TrialState
from ranksearch.space import SearchSpace

__all__ = [
    "EXPECTED",
    "RECIPE",
    "OptunaMirror",
    "distributions",
    "expected_of",
    "frozen_trial",
    "proposal_of",
    "values_of",
]

OPTUNA_STATE = {
    TrialState.RUNNING: OptunaState.RUNNING,
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}


def directions(objectives: Sequence[str]) -> list[StudyDirection]:
    return [StudyDirection.MINIMIZE if OBJECTIVES[o] else StudyDirection.MAXIMIZE for o in objectives]


RECIPE = "@recipe"  # beside the layers, where there are several recipes
EXPECTED = "expected"  # user attribute of a pruned trial: its objectives as they were forecast


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {layer: IntDistribution(0, size - 1) for layer, size in space.sizes.items()}
    if len(space.recipes) > 1:
        found[RECIPE] = CategoricalDistribution(space.recipes)
    return found


def proposal_of(params: Mapping[str, Any], space: SearchSpace) -> Proposal:
    return space.proposal(space.plan(params), params.get(RECIPE, space.recipes[0]))


def _params(record: TrialRecord, space: SearchSpace) -> dict[str, Any]:
    """Without the recipe where there is no choice, and where the trial has one of its own."""
    chosen = {RECIPE: record.recipe} if len(space.recipes) > 1 and record.recipe else {}
    return space.indices(record.spec.plan) | chosen


def values_of(record: TrialRecord, objectives: Sequence[str]) -> list[float] | None:
    """The objectives of a complete trial; None for any other."""
    if record.state is not TrialState.COMPLETE or record.result is None:
        return None
    return [record.result.value_of(objective) for objective in objectives]


def expected_of(record: TrialRecord, objectives: Sequence[str]) -> list[float] | None:
    """The objectives of a pruned trial, its accuracy as it was forecast; None for any other."""
    result = record.result
    if record.state is not TrialState.PRUNED or result is None or result.expected is None:
        return None
    return [
        result.expected.value if objective == "accuracy" else result.value_of(objective) for objective in objectives
    ]


def _expected(record: TrialRecord, objectives: Sequence[str]) -> dict[str, Any]:
    values = expected_of(record, objectives)
    return {EXPECTED: values} if values else {}


def frozen_trial(
    record: TrialRecord,
    space: SearchSpace,
    objectives: Sequence[str],
    constraints: Mapping[str, float] = types.MappingProxyType({}),
) -> FrozenTrial:
    """`constraints`: how far the trial is beyond each limit."""
    params = _params(record, space)
    return optuna.trial.create_trial(
        state=OPTUNA_STATE[record.state],
        values=values_of(record, objectives),
        params=params,
        distributions={name: kind for name, kind in distributions(space).items() if name in params},
        user_attrs={
            "origin": record.origin,
            "attempt": record.attempt,
            "retry_of": record.retry_of,
            "plan": record.spec.plan.to_json(),
            "recipe": record.recipe,
        }
        | _expected(record, objectives),
        constraints=dict(constraints),
    )


class OptunaMirror:
    """Raises ConfigError where the database already has an Optuna study of this name that is not ours."""

    def __init__(self, database: Database, study: StudyRecord) -> None:
        optuna.logging.set_verbosity(logging.WARNING)
        self._record = study
        self._space = SearchSpace.of(study)
        url = database.url
        self._storage = optuna.storages.RDBStorage(url, engine_kwargs=engine_arguments(url))
        configure(self._storage.engine)
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=study.name,
            directions=directions(study.objectives),
            sampler=optuna.samplers.RandomSampler(),
            load_if_exists=True,
        )
        if not self._is_ours():
            raise ConfigError(
                f"the database has an Optuna study {study.name!r} that ranksearch did not make; choose another --study"
            )
        self._study.set_user_attr("ranksearch", study.key)
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            self._study.set_metric_names([*study.objectives])  # so that dashboards name the axes

    def _is_ours(self) -> bool:
        owner = self._study.user_attrs.get("ranksearch")
        is_new = owner is None and not self._study.get_trials(deepcopy=False)
        same_axes = self._study.directions == directions(self._record.objectives)
        return same_axes and (is_new or owner == self._record.key)

    def start(self, record: TrialRecord) -> None:
        """Write the row of a trial that our tables have already."""
        template = frozen_trial(record, self._space, self._record.objectives)
        self._storage.create_new_trial(self._study._study_id, template_trial=template)

    def finish(self, record: TrialRecord) -> None:
        values = values_of(record, self._record.objectives)
        if record.result is not None and record.result.reason:
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, record.number)
            self._storage.set_trial_user_attr(trial_id, "reason", record.result.reason)
        self._study.tell(record.number, values, state=OPTUNA_STATE[record.state], skip_if_finished=True)

    def catch_up(self, records: Sequence[TrialRecord]) -> None:
        """Add the rows that Optuna lacks and tell it of the ends it has not heard of. `records`: all, by number."""
        known = {trial.number: trial.state for trial in self._study.get_trials(deepcopy=False)}
        for record in records:
            if record.number not in known:
                self.start(record)
            elif known[record.number] is OptunaState.RUNNING and record.state is not TrialState.RUNNING:
                self.finish(record)

    def close(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()
