"""What may be wrong with a database."""

from collections import defaultdict
from collections.abc import Iterator

from sqlalchemy import Connection, ForeignKeyConstraint, and_, exists, func, inspect, select, text

from ranksearch.database import rows, schema
from ranksearch.database.lookup import trial_records
from ranksearch.database.migrate import version_of
from ranksearch.database.schema import METADATA, SCHEMA_VERSION, VIEWS
from ranksearch.records import LayerChoice, Plan, TrialRecord, TrialState, key_of

__all__ = ["problems"]


def problems(connection: Connection) -> list[str]:
    """One line each, the gravest first. What cannot be looked at because of one problem is not listed after it."""
    for look in (_damage, _version, _missing, _orphans, _trials):
        if found := list(look(connection)):
            return found
    return []


def _damage(connection: Connection) -> Iterator[str]:
    if connection.dialect.name != "sqlite":
        return
    found = connection.scalars(text("PRAGMA integrity_check")).all()
    yield from (f"the file is damaged: {line}" for line in found if line != "ok")


def _version(connection: Connection) -> Iterator[str]:
    version = version_of(connection)
    if version != SCHEMA_VERSION:
        yield f"the schema is {version}, this ranksearch has {SCHEMA_VERSION}; run: ranksearch db upgrade"


def _missing(connection: Connection) -> Iterator[str]:
    there = inspect(connection)
    yield from (f"table {table} is missing" for table in METADATA.tables if not there.has_table(table))
    views = there.get_view_names()
    yield from (f"view {view} is missing; run: ranksearch db upgrade" for view in VIEWS if view not in views)


def _orphans(connection: Connection) -> Iterator[str]:
    for table in METADATA.sorted_tables:
        for key in sorted(table.foreign_key_constraints, key=lambda key: str(key.name)):
            if count := connection.scalar(_orphans_under(key)):
                names = ", ".join(key.column_keys)
                yield f"{count} rows of {table.name} belong to nothing: no {key.referred_table.name} for their {names}"


def _orphans_under(key: ForeignKeyConstraint):
    child, parent = key.table, key.referred_table.alias()
    columns = [child.c[name] for name in key.column_keys]
    matches = [column == parent.c[element.column.name] for column, element in zip(columns, key.elements, strict=True)]
    known = [column.is_not(None) for column in columns]
    return select(func.count()).select_from(child).where(*known, ~exists().where(and_(*matches)))


def _trials(connection: Connection) -> Iterator[str]:
    for study in connection.execute(select(schema.study)).mappings().all():
        chosen = _plans(connection, study["id"])
        for trial in trial_records(connection, study):
            plan = Plan(chosen[trial.number])
            yield from (f"study {study['name']}, trial {trial.number}: {wrong}" for wrong in _wrong_with(trial, plan))


def _plans(connection: Connection, study_id: int) -> defaultdict[int, dict[str, LayerChoice]]:
    """Trial number -> layer -> choice, as rs_choice has them."""
    trial, choice, layer = schema.trial, schema.choice, schema.layer
    query = (
        select(trial.c.number, layer.c.name, choice.c.method, choice.c.ranks)
        .join(choice, choice.c.trial_id == trial.c.id)
        .join(layer, layer.c.id == choice.c.layer_id)
        .where(trial.c.study_id == study_id)
    )
    plans: defaultdict[int, dict[str, LayerChoice]] = defaultdict(dict)
    for row in connection.execute(query):
        plans[row.number][row.name] = rows.choice_of(row.method, row.ranks)
    return plans


def _wrong_with(trial: TrialRecord, plan: Plan) -> Iterator[str]:
    result = trial.result
    if plan != trial.spec.plan:
        yield "its plan is not that of its rows in rs_choice"
    if result and result.key != key_of(trial.spec):
        yield "its plan, seed or settings are not those it was started with"
    if trial.state is TrialState.COMPLETE and not (result and result.score and result.measurement):
        yield "it is complete without an accuracy or a latency"
    if (trial.state is TrialState.RUNNING) != (trial.finished is None):
        yield f"it is {trial.state.value} and finished at {trial.finished}"
