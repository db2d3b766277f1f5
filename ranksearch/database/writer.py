"""Records → database. Each method is one transaction: after a crash it has happened or it has not."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from ranksearch.database import rows, schema
from ranksearch.database.lookup import require_study, require_trial, trial_records
from ranksearch.database.store import Store, patiently
from ranksearch.errors import StorageError
from ranksearch.records import (
    LayerLatency,
    Measurement,
    Score,
    StudyRecord,
    Timings,
    TrialRecord,
    TrialResult,
    TrialSpec,
    TrialState,
    key_of,
    nearest,
)

__all__ = ["MEASUREMENT_KINDS", "Writer"]

MEASUREMENT_KINDS = ("search", "fresh")


class Writer(Store):
    def save_study(self, study: StudyRecord) -> None:
        """Raises StorageError when a study of that name is there already."""
        self.write(lambda connection: _save_study(connection, study))

    def start_trial(self, study: str, trial: TrialRecord) -> None:
        """Raises NotFoundError without the study, ValueError on a trial that is not of it, and StorageError when the
        number, or the same attempt at the same trial, is there already."""
        self.write(lambda connection: _start_trial(connection, study, trial))

    def finish_trial(self, study: str, number: int, result: TrialResult, finished: str) -> None:
        """`finished` is ISO 8601, UTC. The same result again changes nothing; another one raises StorageError."""
        self.write(lambda connection: _finish_trial(connection, study, number, result, finished))

    def add_trial(self, study: str, trial: TrialRecord) -> TrialRecord:
        """A finished trial that no search ran, whole or not at all, under the next free number, which is returned with
        it. Raises as `start_trial` does."""

        def add(connection: Connection) -> TrialRecord:
            study_id = require_study(connection, study)["id"]
            last = connection.scalar(select(func.max(schema.trial.c.number)).where(schema.trial.c.study_id == study_id))
            added = replace(trial, number=0 if last is None else last + 1)
            _start_trial(connection, study, replace(added, state=TrialState.RUNNING, result=None, finished=None))
            assert added.result is not None
            assert added.finished is not None
            _finish_trial(connection, study, added.number, added.result, added.finished)
            return added

        return self.write(add)

    def add_measurement(self, study: str, number: int, measurement: Measurement, kind: str = "fresh") -> None:
        """`kind` is `search` for the measurement that the search saw, `fresh` for a later one."""
        if kind not in MEASUREMENT_KINDS:
            hint = nearest(kind, MEASUREMENT_KINDS)
            raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(MEASUREMENT_KINDS)}{hint}")
        created = datetime.now(UTC).isoformat()

        def add(connection: Connection) -> None:
            trial = require_trial(connection, study, number)
            _insert_measurement(connection, trial["id"], measurement, kind, created)

        self.write(add)

    def add_score(self, study: str, number: int, split: str, score: Score) -> None:
        """The score on another split than the search's own, such as `test`; replaces an earlier one."""

        def exchange(connection: Connection) -> None:
            trial = require_trial(connection, study, number)
            table = schema.score
            old = delete(table).where(table.c.trial_id == trial["id"], table.c.split == split)
            connection.execute(old)
            connection.execute(insert(table), rows.score_row(trial["id"], split, score))

        self.write(exchange)

    def add_timings(self, timings: Timings) -> None:
        """Takes the place of what was known of the same layers and choices, and leaves the rest."""
        created = datetime.now(UTC).isoformat()
        patiently(
            lambda: self.write(lambda connection: _exchange_timings(connection, timings, created)),
            lambda error: isinstance(error.__cause__, IntegrityError),  # another driver stored the same meanwhile
        )


def _insert(connection: Connection, table: Table, found: Sequence[Mapping[str, Any]]) -> None:
    if found:
        connection.execute(insert(table), list(found))


def _insert_one(connection: Connection, table: Table, row: Mapping[str, Any]) -> int:
    key = connection.execute(insert(table).values(row)).inserted_primary_key
    assert key is not None
    return key[0]


def _insert_measurement(
    connection: Connection, trial_id: int, measurement: Measurement, kind: str, created: str
) -> None:
    row = rows.measurement_row(trial_id, measurement, kind, created)
    measurement_id = _insert_one(connection, schema.measurement, row)
    if measurement.samples is not None:
        connection.execute(insert(schema.samples), rows.samples_row(measurement_id, measurement.samples))


def _save_study(connection: Connection, study: StudyRecord) -> None:
    study_id = _insert_one(connection, schema.study, rows.study_row(study))
    _insert(connection, schema.layer, [rows.layer_row(study_id, i, layer) for i, layer in enumerate(study.layers)])
    layer_ids = _layer_ids(connection, study_id)
    options = [
        rows.option_row(layer_ids[layer.name], i, option)
        for layer in study.layers
        for i, option in enumerate(layer.options)
    ]
    _insert(connection, schema.option, options)
    _insert(connection, schema.seed, [rows.seed_row(study_id, i, seed) for i, seed in enumerate(study.seeds)])
    options = study.profile.options if study.profile else ()
    _insert(connection, schema.profile, [rows.profile_row(study_id, i, option) for i, option in enumerate(options)])


def _exchange_timings(connection: Connection, timings: Timings, created: str) -> None:
    key, identities, latencies = key_of(timings.identity), schema.identity, schema.layer_latency
    if connection.scalar(select(identities.c.identity_key).where(identities.c.identity_key == key)) is None:
        connection.execute(insert(identities), rows.identity_row(timings))
    elif timings.staircase:
        found = update(identities).where(identities.c.identity_key == key)
        connection.execute(found, {"staircase": timings.staircase.to_json()})
    for found in timings.layers:
        connection.execute(delete(latencies).where(latencies.c.identity_key == key, *_is(found)))
    _insert(connection, latencies, [rows.layer_latency_row(key, found, created) for found in timings.layers])


def _is(found: LayerLatency) -> tuple[ColumnElement[bool], ...]:
    table, ranks = schema.layer_latency, rows.ranks_text(found.choice)
    return (table.c.shape == found.shape, table.c.method == found.choice.method, table.c.ranks == ranks)


def _layer_ids(connection: Connection, study_id: int) -> dict[str, int]:
    table = schema.layer
    found = connection.execute(select(table.c.name, table.c.id).where(table.c.study_id == study_id))
    return {row.name: row.id for row in found}


def _start_trial(connection: Connection, study: str, trial: TrialRecord) -> None:
    found = require_study(connection, study)
    _check_belongs(trial, rows.specs_of(found))
    layer_ids = _layer_ids(connection, found["id"])
    if foreign := [name for name in trial.spec.plan if name not in layer_ids]:
        raise ValueError(f"the plan names layer {foreign[0]!r}, which study {study!r} does not have")
    trial_id = _insert_one(connection, schema.trial, rows.trial_row(found["id"], trial))
    chosen = [rows.choice_row(trial_id, layer_ids[name], choice) for name, choice in trial.spec.plan.items()]
    _insert(connection, schema.choice, chosen)


def _check_belongs(trial: TrialRecord, specs: Mapping[str, TrialSpec]) -> None:
    if trial.state is not TrialState.RUNNING or trial.result or trial.finished:
        raise ValueError(f"trial {trial.number} is {trial.state.value}; a trial starts without a result")
    is_another_s = trial.origin.startswith(("longer:", "putback:"))  # as the trial was trained, or longer
    if trial.recipe is None and trial.spec.parent is None and not is_another_s:
        raise ValueError(f"trial {trial.number} has a recipe of its own, and no parent whose model it goes on from")
    first = next(iter(specs.values()))
    dense = specs.get(trial.recipe) if trial.recipe else replace(first, finetune=trial.spec.finetune)
    if dense is None or replace(trial.spec, plan=dense.plan, seed=dense.seed, parent=None) != dense:
        raise ValueError(f"trial {trial.number} has another study key, fine-tune or measure settings than its study")


def _finish_trial(connection: Connection, study: str, number: int, result: TrialResult, finished: str) -> None:
    if result.state is TrialState.RUNNING:
        raise ValueError(f"the result of trial {number} is running; it must be complete, pruned or failed")
    row = require_trial(connection, study, number)
    if row["spec_key"] != result.key:
        raise StorageError(f"trial {number} of study {study!r} was given the result of another trial, {result.key}")
    if row["state"] != TrialState.RUNNING.value:
        _check_same(connection, study, number, result)
        return
    connection.execute(update(schema.trial).where(schema.trial.c.id == row["id"]), rows.finished_row(result, finished))
    if result.measurement:
        _insert_measurement(connection, row["id"], result.measurement, "search", finished)
    _insert(connection, schema.score, rows.stage_rows(row["id"], result))
    _insert(connection, schema.timing, [rows.timing_row(row["id"], phase, s) for phase, s in result.seconds.items()])


def _check_same(connection: Connection, study: str, number: int, result: TrialResult) -> None:
    (stored,) = trial_records(connection, require_study(connection, study), number)
    if stored.result != result:
        raise StorageError(f"trial {number} of study {study!r} is {stored.state.value} already, with another result")
