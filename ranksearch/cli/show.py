"""`show TRIAL`: everything about one trial."""

import json
import sys
from typing import Annotated, Any

import typer

from ranksearch.cli import figures
from ranksearch.cli.options import FormatOption, with_settings
from ranksearch.cli.output import Column, Format, Row, print_rows, records_of
from ranksearch.cli.queries import is_accuracy, open_study
from ranksearch.errors import ConfigError
from ranksearch.records import LayerRecord, Plan, StudyRecord, TrialRecord
from ranksearch.settings import Settings

__all__ = ["show"]


@with_settings("study", "storage")
def show(
    settings: Settings,
    trial: Annotated[int, typer.Argument(help="The trial's number.", min=0, metavar="TRIAL")],
    form: FormatOption = Format.TABLE,
) -> None:
    """Show one trial: its figures, its plan layer by layer, its timings."""
    if form is Format.CSV:
        raise ConfigError("--format is 'csv'; show prints a table or json")
    study = open_study(settings)
    record, row = study.trial(trial), _row_of(study.trials(all_rows=True), trial)
    if form is Format.JSON:
        _write_json(row | {"layers": _layers(study.record, record.spec.plan), "measurement": _measurement(record)})
    else:
        _print(study.record, record, row, percent=is_accuracy(study.record))


def _row_of(frame: Any, trial: int) -> dict[str, Any]:
    return records_of(frame.loc[[trial]])[0]


def _write_json(found: Row) -> None:
    sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _layers(study: StudyRecord, plan: Plan) -> list[dict[str, Any]]:
    """The changed layers, with what they cost dense and now."""
    return [_layer(layer, plan) for layer in study.layers if layer.name in plan]


def _layer(layer: LayerRecord, plan: Plan) -> dict[str, Any]:
    choice = plan[layer.name]
    cost = next(option.cost for option in layer.options if option.choice == choice)
    return {
        "layer": layer.name,
        "shape": layer.shape,
        "choice": str(choice),
        "parameters": cost.parameters,
        "dense_parameters": layer.cost.parameters,
        "macs": cost.macs,
        "dense_macs": layer.cost.macs,
    }


def _measurement(trial: TrialRecord) -> dict[str, Any] | None:
    measured = trial.result and trial.result.measurement
    return measured.to_json() if measured else None


def _print(study: StudyRecord, trial: TrialRecord, row: Row, *, percent: bool) -> None:
    print(f"trial {trial.number} of {study.name}: {trial.state}, {trial.origin}")
    for name, text in _facts(trial, row, percent).items():
        print(f"  {name:<11}{text}")
    changed = _layers(study, trial.spec.plan)
    print(f"\n{len(changed)} of {len(study.layers)} layers changed, {len(study.layers) - len(changed)} dense")
    if changed:
        print_rows(changed, LAYER_COLUMNS, Format.TABLE)


LAYER_COLUMNS = (
    Column(header="layer", cell=lambda row: row["layer"], justify="left"),
    Column(header="shape", cell=lambda row: row["shape"], justify="left", rank=1),
    Column(header="becomes", cell=lambda row: row["choice"], justify="left"),
    Column(header="parameters", cell=lambda row: _kept(row, "parameters", figures.parameters), rank=2),
    Column(header="MACs", cell=lambda row: _kept(row, "macs", figures.macs)),
)


def _kept(row: Row, name: str, shown: Any) -> str:
    dense = row[f"dense_{name}"]
    share = f" ({100 * row[name] / dense:.0f} %)" if dense else ""
    return f"{shown(row[name])}{share}"


def _facts(trial: TrialRecord, row: Row, percent: bool) -> dict[str, str]:
    """What there is to say; a failed trial has little of it."""
    result = trial.result
    facts = {"attempt": f"{trial.attempt + 1}, repeats trial {trial.retry_of}"} if trial.retry_of is not None else {}
    if result is None:
        return facts | {"started": trial.started}
    if result.reason:
        facts["reason"] = result.reason
    if result.score:
        facts["accuracy"] = (
            f"{figures.accuracy_of(row, percent=percent)} on {result.score.num_examples} validation examples"
        )
    facts["recipe"] = trial.recipe or "its own"
    if row["parent"] is not None:
        facts["parent"] = f"trial {int(row['parent'])}, whose model it goes on from"
    if result.oneshot:
        facts["one-shot"] = f"{figures.accuracy(result.oneshot.value, percent=percent)} before fine-tuning"
    if row["test_accuracy"] is not None:
        facts["test"] = figures.accuracy_of(row, percent=percent, prefix="test_accuracy")
    if measured := result.measurement:
        flags = f"; {', '.join(measured.flags)}" if measured.flags else ""
        facts["speed-up"] = f"{figures.speedup(row)}, {measured.num_blocks} paired blocks{flags}"
        facts["latency"] = f"{figures.latency(row['latency_ms'])} at batch {measured.batch_size}"
    facts["parameters"] = figures.parameters(result.parameters)
    facts["MACs"] = figures.macs(result.macs)
    facts["weights"] = figures.size(result.bytes)
    facts["memory"] = f"{figures.size(result.peak_memory_bytes)} at the most"
    facts["seconds"] = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in result.seconds.items())
    if environment := result.environment:
        facts["on"] = f"{environment.device_model}, torch {environment.torch}, Python {environment.python}"
    return facts
