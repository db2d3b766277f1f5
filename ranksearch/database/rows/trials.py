"""Trials, their measurements and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ranksearch.database.rows.cells import Row, choice_cells, finite, plan_of, plan_text
from ranksearch.database.rows.studies import recipes_of
from ranksearch.records import (
    Environment,
    FinetuneConfig,
    LayerChoice,
    MeasureConfig,
    Measurement,
    Plan,
    Samples,
    Score,
    TrialRecord,
    TrialResult,
    TrialSpec,
    TrialState,
    key_of,
)

__all__ = [
    "choice_row",
    "finished_row",
    "measurement_of",
    "measurement_row",
    "samples_row",
    "score_row",
    "specs_of",
    "stage_rows",
    "timing_row",
    "trial_of",
    "trial_row",
]

_MEASURED = (
    *("protocol", "batch_size", "ratio", "ratio_low", "ratio_high", "dense_p50_ms", "p50_ms", "p90_ms", "p95_ms"),
    *("p99_ms", "num_blocks", "num_samples", "num_dropped_blocks", "warmup_seconds", "seconds"),
)
_RESULT = ("reason", "details", "parameters", "macs", "bytes", "peak_memory_bytes", "retryable")


def trial_row(study_id: int, trial: TrialRecord) -> Row:
    """A trial that starts. What it will result in comes with `finished_row`."""
    return {
        "study_id": study_id,
        "number": trial.number,
        "origin": trial.origin,
        "state": trial.state.value,
        "attempt": trial.attempt,
        "retry_of": trial.retry_of,
        "spec_key": key_of(trial.spec),
        "recipe": trial.recipe,
        "finetune": None if trial.recipe else trial.spec.finetune.to_json(),
        "parent_key": trial.spec.parent,
        "plan_key": key_of(trial.spec.plan),
        "plan": plan_text(trial.spec.plan),
        "seed": trial.spec.seed,
        "started": trial.started,
        "retryable": False,
    }


def choice_row(trial_id: int, layer_id: int, choice: LayerChoice) -> Row:
    return {"trial_id": trial_id, "layer_id": layer_id, **choice_cells(choice)}


def finished_row(result: TrialResult, finished: str) -> Row:
    """The columns of `rs_trial` that a result fills in."""
    row = {name: getattr(result, name) for name in _RESULT}
    row |= {"state": result.state.value, "finished": finished}
    row |= _accuracy("", result.score) | _accuracy("oneshot_", result.oneshot)
    row["environment"] = result.environment and result.environment.to_json()
    return row


def _accuracy(prefix: str, score: Score | None) -> dict[str, Any]:
    values = (score.value, score.low, score.high, score.num_examples) if score else (None,) * 4
    return dict(zip(_accuracy_columns(prefix), values, strict=True))


def _accuracy_columns(prefix: str) -> tuple[str, ...]:
    return (f"{prefix}accuracy", f"{prefix}accuracy_low", f"{prefix}accuracy_high", f"{prefix}num_examples")


def _score_of(row: Row, prefix: str) -> Score | None:
    value, low, high, num_examples = (row[column] for column in _accuracy_columns(prefix))
    return None if value is None else Score(value=value, low=low, high=high, num_examples=num_examples)


def timing_row(trial_id: int, phase: str, seconds: float) -> Row:
    """Raises ValueError on a number that is not finite."""
    return finite({"trial_id": trial_id, "phase": phase, "seconds": seconds})


def score_row(trial_id: int, split: str, score: Score) -> Row:
    return {"trial_id": trial_id, "split": split, **score.to_json()}


RUNG, EXPECTED = "validation at ", "validation, expected"  # beside `test`: scores that came before the end


def stage_rows(trial_id: int, result: TrialResult) -> list[Row]:
    scores = {RUNG + stage: score for stage, score in result.rungs.items()}
    scores |= {EXPECTED: result.expected} if result.expected else {}
    return [score_row(trial_id, split, score) for split, score in scores.items()]


def _stages_of(scores: Sequence[Row]) -> dict[str, Any]:
    """The fields of a result."""
    found = {row["split"]: Score(**{f.name: row[f.name] for f in fields(Score)}) for row in scores}
    rungs = {split.removeprefix(RUNG): score for split, score in found.items() if split.startswith(RUNG)}
    return {"rungs": rungs, "expected": found.get(EXPECTED)}


def specs_of(study: Row) -> dict[str, TrialSpec]:
    """Recipe → what the specs of its trials share, with the plan that changes nothing."""
    measure = MeasureConfig.from_json(study["measure"])
    return {
        recipe.name: TrialSpec(study=study["study_key"], plan=Plan(), seed=0, finetune=recipe.finetune, measure=measure)
        for recipe in recipes_of(study)
    }


def trial_of(
    row: Row,
    specs: Mapping[str, TrialSpec],
    measurement: Row | None,
    seconds: Mapping[str, float],
    scores: Sequence[Row],
) -> TrialRecord:
    """`specs` is `specs_of` its study, `measurement` the row of the search, `seconds` those of each phase, `scores` all
    its rows of `rs_score`."""
    state = TrialState(row["state"])
    return TrialRecord(
        number=row["number"],
        origin=row["origin"],
        spec=_spec_of(row, specs),
        recipe=row["recipe"],
        state=state,
        attempt=row["attempt"],
        retry_of=row["retry_of"],
        started=row["started"],
        finished=row["finished"],
        result=None if state is TrialState.RUNNING else _result_of(row, state, measurement, seconds, scores),
    )


def _spec_of(row: Row, specs: Mapping[str, TrialSpec]) -> TrialSpec:
    spec = specs[row["recipe"] or next(iter(specs))]
    finetune = FinetuneConfig.from_json(row["finetune"]) if row["finetune"] else spec.finetune
    return replace(spec, plan=plan_of(row["plan"]), seed=row["seed"], finetune=finetune, parent=row["parent_key"])


def _result_of(
    row: Row, state: TrialState, measurement: Row | None, seconds: Mapping[str, float], scores: Sequence[Row]
) -> TrialResult:
    return TrialResult(
        key=row["spec_key"],
        state=state,
        score=_score_of(row, ""),
        oneshot=_score_of(row, "oneshot_"),
        measurement=measurement_of(measurement) if measurement else None,
        seconds=dict(seconds),
        environment=row["environment"] and Environment.from_json(row["environment"]),
        **{name: row[name] for name in _RESULT},
        **_stages_of(scores),
    )


def measurement_row(trial_id: int, measurement: Measurement, kind: str, created: str) -> Row:
    """Raises ValueError on a number that is not finite."""
    row: dict[str, Any] = {name: getattr(measurement, name) for name in _MEASURED}
    row |= {"trial_id": trial_id, "kind": kind, "created": created, "flags": ",".join(measurement.flags)}
    row |= {"identity_key": key_of(measurement.identity), "identity": dict(measurement.identity)}
    row["conditions"] = dict(finite(dict(measurement.conditions)))
    return finite(row)


def samples_row(measurement_id: int, samples: Samples) -> Row:
    return {"measurement_id": measurement_id, "packed": samples.pack()}


def measurement_of(row: Row) -> Measurement:
    return Measurement(
        identity=row["identity"],
        conditions=row["conditions"],
        flags=tuple(row["flags"].split(",")) if row["flags"] else (),
        **{name: row[name] for name in _MEASURED},
    )
