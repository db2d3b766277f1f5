"""Finding rows within a transaction."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, Select, select

from ranksearch.database import rows, schema
from ranksearch.database.rows import Row
from ranksearch.errors import NotFoundError
from ranksearch.records import StudyRecord, TrialRecord, nearest

__all__ = ["grouped", "require_study", "require_trial", "same_net", "study_row", "trial_records"]


def study_row(connection: Connection, name: str) -> Row | None:
    table = schema.study
    return connection.execute(select(table).where(table.c.name == name)).mappings().one_or_none()


def require_study(connection: Connection, name: str) -> Row:
    """Raises NotFoundError."""
    found = study_row(connection, name)
    if found is None:
        names = connection.scalars(select(schema.study.c.name)).all()
        listed = f"there are {', '.join(sorted(names)[:10])}" if names else "it has none"
        raise NotFoundError(f"study {name!r} is not in this database, {listed}{nearest(name, names)}")
    return found


def require_trial(connection: Connection, study: str, number: int) -> Row:
    """Raises NotFoundError."""
    study_id = require_study(connection, study)["id"]
    table = schema.trial
    where = (table.c.study_id == study_id, table.c.number == number)
    found = connection.execute(select(table).where(*where)).mappings().one_or_none()
    if found is None:
        raise NotFoundError(f"trial {number} is not in study {study!r}; `ranksearch trials --study {study}` lists them")
    return found


def same_net(connection: Connection, study: StudyRecord) -> list[Row]:
    """The studies whose dense model has this one's architecture and costs in every layer what it costs in this one.

    The fingerprint of the architecture does not know the input's size; the layers' multiply-accumulates do.
    """
    table, layer = schema.study, schema.layer
    alike = [
        row
        for row in connection.execute(select(table).order_by(table.c.id)).mappings()
        if row["fingerprint"].get("model") == study.fingerprint["model"]
    ]
    of_these = layer.c.study_id.in_([row["id"] for row in alike])
    costs = grouped(_rows(connection, select(layer.c.study_id, layer.c.name, layer.c.macs).where(of_these)), "study_id")
    wanted = {(found.name, found.cost.macs) for found in study.layers}
    return [row for row in alike if {(cost["name"], cost["macs"]) for cost in costs[row["id"]]} == wanted]


def trial_records(connection: Connection, study: Row, number: int | None = None) -> list[TrialRecord]:
    """All trials of a study, or the one of that number, in order, by four statements."""
    trial, measurement, timing, score = schema.trial, schema.measurement, schema.timing, schema.score
    wanted = trial.c.study_id == study["id"]
    if number is not None:
        wanted &= trial.c.number == number
    searched = (
        select(measurement)
        .join(trial, measurement.c.trial_id == trial.c.id)
        .where(wanted, measurement.c.kind == "search")
        .order_by(measurement.c.id)
    )
    timed = select(timing).join(trial, timing.c.trial_id == trial.c.id).where(wanted)
    scored = select(score).join(trial, score.c.trial_id == trial.c.id).where(wanted)
    measured = {row["trial_id"]: row for row in _rows(connection, searched)}
    timings = grouped(_rows(connection, timed), "trial_id")
    scores = grouped(_rows(connection, scored), "trial_id")
    specs = rows.specs_of(study)
    return [
        rows.trial_of(
            row,
            specs,
            measured.get(row["id"]),
            {t["phase"]: t["seconds"] for t in timings[row["id"]]},
            scores[row["id"]],
        )
        for row in _rows(connection, select(trial).where(wanted).order_by(trial.c.number))
    ]


def _rows(connection: Connection, query: Select) -> Sequence[Row]:
    return connection.execute(query).mappings().all()


def grouped(found: Iterable[Row], column: str) -> defaultdict[int, list[Row]]:
    groups: defaultdict[int, list[Row]] = defaultdict(list)
    for row in found:
        groups[row[column]].append(row)
    return groups
