"""`export TRIAL`: a trial's model as files."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ranksearch.cli import figures
from ranksearch.cli.options import with_settings
from ranksearch.cli.queries import open_study
from ranksearch.records import Score
from ranksearch.settings import Settings

__all__ = ["export"]


def _task_flag(name: str) -> typer.models.OptionInfo:
    return typer.Option(f"--{name}", metavar="VALUE", help="Where it is no longer named as in the run.")


@with_settings("study", "storage")
def export(
    settings: Settings,
    trial: Annotated[int, typer.Argument(help="The trial's number.", min=0, metavar="TRIAL")],
    output: Annotated[Path, typer.Option("--output", help="A new folder.", metavar="DIR")],
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    model: Annotated[str | None, _task_flag("model")] = None,
    weights: Annotated[str | None, _task_flag("weights")] = None,
    data: Annotated[str | None, _task_flag("data")] = None,
    metric: Annotated[str | None, _task_flag("metric")] = None,
) -> None:
    """Write a trial's model to a folder: model.safetensors, plan.json, README.md.

    The model is evaluated again, on the validation and the test split.
    """
    from ranksearch import bundle
    from ranksearch.evaluate import evaluate

    study = open_study(settings)
    record, found = study.trial(trial), study.record
    bundle.check_free(output, force=force)
    flags = {"model": model, "weights": weights, "data": data, "metric": metric}
    task = Settings.of_study(found, {name: value for name, value in flags.items() if value is not None}).task()
    net = study.load(trial, task=task)
    splits = {name: split for name, split in task.splits.items() if name in ("validation", "test")}
    scores = {name: evaluate(net, split, task.metric) for name, split in splits.items()}
    stored = record.result.score if record.result else None
    percent = task.metric_name == "accuracy"
    _compare(scores["validation"], stored, percent)
    bundle.export(net, record, found, output, example_input=task.example_input, scores=scores, force=force)
    for name, score in scores.items():
        row = {"accuracy": score.value, "accuracy_low": score.low, "accuracy_high": score.high}
        _note(f"{name:<11}{figures.accuracy_of(row, percent=percent)}, n = {score.num_examples}")
    print(output)


def _compare(now: Score, stored: Score | None, percent: bool) -> None:
    if stored is not None and now.value != stored.value:
        before, after = (figures.accuracy(s.value, percent=percent) for s in (stored, now))
        _note(
            f"warning: the accuracy on validation is {after} here and was {before} in the trial; another device or "
            "another version of torch rounds differently, other data would differ more"
        )


def _note(text: str) -> None:
    print(text, file=sys.stderr)
