"""`run`: the whole job, and what to say about it."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ranksearch.cli import figures
from ranksearch.cli.options import (
    ALL_SETTINGS,
    FormatOption,
    MaxDropOption,
    MaxLatencyOption,
    MinAccuracyOption,
    MinSpeedupOption,
    with_settings,
)
from ranksearch.cli.output import Column, Format, print_frame, print_rows
from ranksearch.cli.queries import infeasible, trial_columns
from ranksearch.errors import InfeasibleError
from ranksearch.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

    from ranksearch.study.search import SearchConfig
    from ranksearch.study.study import ParetoFilter, Study
    from ranksearch.tasks import Task

__all__ = ["run"]


@with_settings(*ALL_SETTINGS)
def run(
    settings: Settings,
    max_latency_ms: MaxLatencyOption = None,
    min_speedup: MinSpeedupOption = None,
    min_accuracy: MinAccuracyOption = None,
    max_drop: MaxDropOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be searched, write nothing.")] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Search until the study has its budget of finished trials. The same command again resumes it.

    Proposals keep to --max-drop and --min-speedup. Exit code 3 where no trial meets these, --max-latency-ms and
    --min-accuracy.
    """
    from ranksearch.study.study import ParetoFilter

    config, task = settings.search_config(), settings.task()
    if dry_run:
        _plan(task, config, form)
        return
    wanted = ParetoFilter(
        max_latency_ms=max_latency_ms, min_speedup=min_speedup, min_accuracy=min_accuracy, max_drop=max_drop
    )
    config = replace(config, max_drop=max_drop, min_speedup=min_speedup)
    _report(_search(task, config), wanted, settings, form)


def _search(task: "Task", config: "SearchConfig") -> "Study":
    from ranksearch.cli.progress import make_view
    from ranksearch.study.search import run_search
    from ranksearch.study.summary import chance_accuracy

    view = make_view(chance_accuracy(task))
    with view.shown():
        return run_search(task, config, view)


# --- the end ---------------------------------------------------------------------------------------------------------


def _report(study: "Study", wanted: "ParetoFilter", settings: Settings, form: Format) -> None:
    from ranksearch.study.summary import chance_accuracy, dense_row, doubts, failures, gain_over_rules, pruned

    trials, front = study.trials(), study.pareto()
    dense = dense_row(trials)
    kept = wanted.apply(front, None if dense is None else float(dense.accuracy))
    shown = front if kept.empty else kept
    print_frame(_dense_first(trials, shown), trial_columns(study.record), form)
    assert study.task is not None
    for doubt in doubts(trials, study.task.metric_name, chance=chance_accuracy(study.task)):
        _note(f"warning: {doubt}")
    for failure in failures(trials):
        _note(f"{len(failure.trials)} failed, the first one trial {failure.trials[0]}: {failure.reason}")
    if (stopped := pruned(trials)) is not None:
        saved = figures.duration(stopped.seconds_saved)
        _note(f"pruned   {stopped.num} trials that would hardly have joined the front, about {saved} saved")
    if (gain := gain_over_rules(trials)) is not None:
        share = gain.found / gain.by_rules
        _note(f"gain     {gain.found:.3f} of hypervolume, {share:.2f} times that of uniform plans alone")
    _next_steps(study, shown, settings)
    if kept.empty:
        raise InfeasibleError(infeasible(study, wanted))


def _dense_first(trials: "pd.DataFrame", front: "pd.DataFrame") -> "pd.DataFrame":
    import pandas as pd

    dense = trials.index[trials.origin == "dense"].union(front.index[front.origin == "dense"])
    return pd.concat([trials.loc[dense], front.drop(dense, errors="ignore")])


def _next_steps(study: "Study", front: "pd.DataFrame", settings: Settings) -> None:
    from ranksearch.database import read_url, safe_url, sqlite_file
    from ranksearch.study.study import files_folder

    url = settings.storage_url
    _note("")
    _note(f"results  {sqlite_file(read_url(url)) or safe_url(url)}, study {study.name}")
    _note(f"weights  {files_folder(url, study.name)}")
    where = f"--study {study.name}{_storage_flag(settings)}"
    _note(f"next     ranksearch pareto {where}")
    if (number := _recommended(front)) is not None:
        _note(f"         ranksearch show {number} {where}")
        _note(f"         ranksearch export {number} --output trial-{number} {where}")


def _storage_flag(settings: Settings) -> str:
    """Nothing where the next command finds the storage by itself, or where the URL holds a password."""
    from ranksearch.database import safe_url

    found_anyway = Settings.read({}).storage_url == settings.storage_url
    secret = safe_url(settings.storage_url) != settings.storage_url
    return "" if found_anyway or secret else f" --storage {settings.storage_url}"


def _recommended(front: "pd.DataFrame") -> int | None:
    """The fastest that loses at most a point against the best of the front, to have a number to paste."""
    factorized = front.loc[front.origin != "dense"]
    near = factorized.loc[factorized.accuracy >= front.accuracy.max() - 0.01]
    near = factorized if near.empty else near
    return None if near.empty else int(near.latency_ratio.idxmin())


def _note(text: str) -> None:
    print(text, file=sys.stderr)


# --- a dry run -------------------------------------------------------------------------------------------------------


def _plan(task: "Task", config: "SearchConfig", form: Format) -> None:
    from ranksearch.layers import find_layers
    from ranksearch.space import layer_records

    layers = layer_records(config.space, find_layers(task.model, task.example_input))
    rows = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "shape": layer.shape,
            "parameters": layer.cost.parameters,
            "macs": layer.cost.macs,
            "num_options": len(layer.options),
            "options": [str(option.choice) for option in layer.options],
            "skipped": layer.skipped,
        }
        for layer in layers
    ]
    if form is Format.CSV:
        rows = [row | {"options": " ".join(row["options"])} for row in rows]
    print_rows(rows, PLAN_COLUMNS, form)
    searched = [row for row in rows if row["num_options"]]
    _note("")
    _note(f"{len(searched)} of {len(rows)} layers are searched; objectives: {', '.join(config.space.objectives)}")
    _note(f"budget: {config.budget} trials, the dense model and the seeds among them")
    _note(_time_needed(task, config))


PLAN_COLUMNS = (
    Column(header="layer", cell=lambda row: row["layer"], justify="left"),
    Column(header="shape", cell=lambda row: row["shape"] or row["kind"], justify="left", rank=1),
    Column(header="parameters", cell=lambda row: figures.parameters(row["parameters"]), rank=2),
    Column(header="MACs", cell=lambda row: figures.macs(row["macs"]), rank=2),
    Column(header="options", cell=lambda row: str(row["num_options"] or "–")),
    Column(header="dense because", cell=lambda row: row["skipped"] or "", justify="left", wrap=True),
)


def _time_needed(task: "Task", config: "SearchConfig") -> str:
    import torch

    from ranksearch.study.estimate import estimate
    from ranksearch.study.longer import num_longer
    from ranksearch.study.search import device_of
    from ranksearch.workers.executor import available_cores

    device = device_of(config)
    if config.cluster.address is not None or (device == "cuda" and not torch.cuda.is_available()):
        return "time: not estimated, since the trials run elsewhere"
    cores = config.cluster.cpus_per_trial or available_cores()
    estimates = [estimate(task, recipe.finetune, config.measure, device, cores) for recipe in config.recipes]
    found = max(estimates, key=lambda each: each.trial)
    total = config.budget * found.trial + max(0, config.longer - 1) * num_longer(config.budget) * found.train
    return (
        f"time: up to {figures.duration(found.trial)} a trial (training {figures.duration(found.train)}, evaluating "
        f"{figures.duration(found.evaluate)}, measuring {figures.duration(found.measure)}), "
        f"{figures.duration(total)} in all, one at a time, from a few timed steps on this machine"
    )
