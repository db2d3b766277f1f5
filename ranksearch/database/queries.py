"""Database → records."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Connection, select

from ranksearch.database import rows, schema
from ranksearch.database.lookup import grouped, require_study, require_trial, same_net, study_row, trial_records
from ranksearch.database.rows import Row
from ranksearch.database.store import Store
from ranksearch.records import (
    MeasureConfig,
    Measurement,
    Plan,
    Profile,
    Recipe,
    Samples,
    StudyRecord,
    Timings,
    TrialRecord,
    TrialSpec,
    key_of,
)

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
        found = [self.trial(study, number).spec]
        if found[0].parent is None:
            return found  # as those of a search do: the others need not be read
        specs = {key_of(trial.spec): trial.spec for trial in self.trials(study)}
        while (parent := found[0].parent) is not None:
            found.insert(0, specs[parent])
        return found

    def samples(self, study: str, number: int) -> dict[int, Samples]:
        """The raw times of a trial's measurements, by rs_measurement.id, the oldest first. Raises NotFoundError.

        A measurement that was taken over from another trial has none of its own.
        """
        measurement, samples = schema.measurement, schema.samples
        with self.reading() as connection:
            trial_id = require_trial(connection, study, number)["id"]
            query = (
                select(measurement.c.id, measurement.c.num_blocks, samples.c.packed)
                .join(samples, samples.c.measurement_id == measurement.c.id)
                .where(measurement.c.trial_id == trial_id)
                .order_by(measurement.c.id)
            )
            return {row.id: Samples.unpack(row.packed, row.num_blocks) for row in connection.execute(query)}

    def find_profiles(self, study: StudyRecord) -> list[Profile]:
        """Those of studies of the same net, weights, data and factors under this one's identity, the newest first."""
        with self.reading() as connection:
            found = [
                _profile_of(connection, row)
                for row in reversed(same_net(connection, study))
                if all(row["fingerprint"].get(part) == study.fingerprint.get(part) for part in ("weights", "data"))
                and _factors(rows.recipes_of(row)) == _factors(study.recipes)
            ]
        return [profile for profile in found if profile and profile.identity.items() >= study.identity.items()]

    def timings(self, identity: Mapping[str, str]) -> Timings:
        """What is known under this identity of layers by themselves."""
        table, latencies = schema.identity, schema.layer_latency
        with self.reading() as connection:
            wanted = select(table).where(table.c.identity_key == key_of(identity))
            found = connection.execute(wanted).mappings().one_or_none()
            if found is None:
                return Timings(identity=identity)
            of_it = select(latencies).where(latencies.c.identity_key == found["identity_key"])
            in_order = of_it.order_by(latencies.c.shape, latencies.c.method, latencies.c.ranks)
            return rows.timings_of(found, connection.execute(in_order).mappings().all())

    def fresh_measurements(self, study: str) -> list[tuple[int, Measurement]]:
        """The number of a trial and what was measured again of it, the oldest first. Raises NotFoundError."""
        trial, measurement = schema.trial, schema.measurement
        with self.reading() as connection:
            study_id = require_study(connection, study)["id"]
            query = (
                select(measurement, trial.c.number)
                .join(trial, measurement.c.trial_id == trial.c.id)
                .where(trial.c.study_id == study_id, measurement.c.kind == "fresh")
                .order_by(measurement.c.id)
            )
            return [(row["number"], rows.measurement_of(row)) for row in connection.execute(query).mappings()]

    def find_measurement(self, study: StudyRecord, plan: Plan) -> Measurement | None:
        """The newest measurement of an equal plan that `study` may take for its own, so that a plan is measured once.

        It was made in any study of the same net, under the identity that this one measures under: device model,
        backend, versions, threads. Its conditions then name that trial, as `reused from`.
        """
        trial, measurement = schema.trial, schema.measurement
        with self.reading() as connection:
            kin = {row["id"]: row for row in same_net(connection, study)}
            query = (
                select(measurement, trial.c.study_id, trial.c.number)
                .join(trial, measurement.c.trial_id == trial.c.id)
                .where(trial.c.study_id.in_(kin), trial.c.plan_key == key_of(plan))
                .where(measurement.c.identity_key == key_of(study.identity))
                .order_by(measurement.c.id.desc())
            )
            for row in connection.execute(query).mappings():
                maker = kin[row["study_id"]]
                found = rows.measurement_of(row)
                if _is_as_good(found, row["kind"], MeasureConfig.from_json(maker["measure"]), study.measure):
                    origin = {"reused from": f"{maker['name']}/{row['number']}"}
                    return replace(found, conditions=origin | dict(found.conditions))
        return None


def _factors(recipes: Sequence[Recipe]) -> tuple[str, int]:
    """What of the first recipe decides a profile's errors and losses."""
    finetune = recipes[0].finetune
    return finetune.factors, finetune.calibration_examples if finetune.factors != "plain" else 0


DOUBTFUL = frozenset({"contended", "unstable", "throttled"})


def _is_as_good(found: Measurement, kind: str, tried: MeasureConfig, wanted: MeasureConfig) -> bool:
    """Nothing disturbed it, and it is as narrow as wanted, or that was tried for as long."""
    half_width = (found.ratio_high - found.ratio_low) / 2 / found.ratio
    is_tried = tried.half_width <= wanted.half_width and tried.max_seconds >= wanted.max_seconds
    is_narrow = half_width <= wanted.half_width or (kind == "search" and is_tried)
    return is_narrow and not DOUBTFUL.intersection(found.flags)


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
        profile=_options_profiled(connection, study),
    )


def _profile_of(connection: Connection, study: Row) -> Profile | None:
    return rows.profile_of(study, _options_profiled(connection, study))


def _options_profiled(connection: Connection, study: Row) -> list[Row]:
    profile = schema.profile
    query = select(profile).where(profile.c.study_id == study["id"]).order_by(profile.c.position)
    return list(connection.execute(query).mappings())
