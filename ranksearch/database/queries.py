"""Database → records."""

from collections.abc import Mapping

from sqlalchemy import Connection, select

from ranksearch.database import rows, schema
from ranksearch.database.lookup import grouped, require_study, require_trial, study_row, trial_records
from ranksearch.database.rows import Row
from ranksearch.database.store import Store
from ranksearch.records import Measurement, Plan, StudyRecord, TrialRecord, TrialSpec, key_of

__all__ = ["Queries"]


class Queries(Store):
    def load_study(self, name: str) -> StudyRecord | None:
        with self.reading() as connection:
            found = study_row(connection, name)
            return _study_of(connection, found) if found else None

    def trials(self, study: str) -> list[TrialRecord]:
        """Every row of a study, superseded failures included, in order of number. Raises NotFoundError."""
        with self.reading() as connection:
            return trial_records(connection, require_study(connection, study))

    def trial(self, study: str, number: int) -> TrialRecord:
        """Raises NotFoundError."""
        with self.reading() as connection:
            require_trial(connection, study, number)
            (found,) = trial_records(connection, require_study(connection, study), number)
            return found

    def lineage(self, study: str, number: int) -> list[TrialSpec]:
        """The specs of a trial and of those whose models it goes on from, its own last. Raises NotFoundError."""
        specs = {key_of(trial.spec): trial.spec for trial in self.trials(study)}
        found = [self.trial(study, number).spec]
        while (parent := found[0].parent) is not None:
            found.insert(0, specs[parent])
        return found

    def find_measurement(self, study: str, plan: Plan, identity: Mapping[str, str] | None = None) -> Measurement | None:
        """The newest measurement of an equal plan in a study, so that a plan is measured once.

        With an `identity`, only one that was made under the same: device model, backend, versions, threads.
        """
        trial, measurement = schema.trial, schema.measurement
        with self.reading() as connection:
            study_id = require_study(connection, study)["id"]
            query = (
                select(measurement)
                .join(trial, measurement.c.trial_id == trial.c.id)
                .where(trial.c.study_id == study_id, trial.c.plan_key == key_of(plan))
                .order_by(measurement.c.id.desc())
                .limit(1)
            )
            if identity is not None:
                query = query.where(measurement.c.identity_key == key_of(identity))
            found = connection.execute(query).mappings().one_or_none()
            return rows.measurement_of(found) if found else None


def _study_of(connection: Connection, study: Row) -> StudyRecord:
    layer, option, seed = schema.layer, schema.option, schema.seed
    layers = select(layer).where(layer.c.study_id == study["id"]).order_by(layer.c.position)
    options = (
        select(option)
        .join(layer, option.c.layer_id == layer.c.id)
        .where(layer.c.study_id == study["id"])
        .order_by(option.c.position)
    )
    seeds = select(seed).where(seed.c.study_id == study["id"]).order_by(seed.c.position)
    of_layer = grouped(connection.execute(options).mappings(), "layer_id")
    return rows.study_of(
        study,
        layers=[rows.layer_of(row, of_layer[row["id"]]) for row in connection.execute(layers).mappings()],
        seeds=[rows.seed_of(row) for row in connection.execute(seeds).mappings()],
    )
