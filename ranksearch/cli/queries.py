"""`studies`, `status`, `trials`, `pareto`: what a database holds."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ranksearch.cli import figures
from ranksearch.cli.options import (
    FormatOption,
    MaxDropOption,
    MaxLatencyOption,
    MinAccuracyOption,
    MinSpeedupOption,
    with_settings,
)
from ranksearch.cli.output import Column, Format, Row, print_frame, print_rows
from ranksearch.errors import ConfigError, InfeasibleError, NotFoundError
from ranksearch.records import StudyRecord, nearest
from ranksearch.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

    from ranksearch.study.study import ParetoFilter, Study

__all__ = ["open_study", "pareto", "status", "studies", "trial_columns", "trials"]

LARGER_IS_BETTER = ("accuracy", "test_accuracy", "oneshot_accuracy", "speedup")

SortOption = Annotated[str | None, typer.Option("--sort", metavar="COLUMN", help="Best first; any column of the JSON.")]
LimitOption = Annotated[int | None, typer.Option("--limit", help="At most so many rows.", min=1)]


def open_study(settings: Settings, name: str | None = None) -> "Study":
    """The study that was named, else the newest of the database."""
    from ranksearch.study.study import Study

    return Study.open(name or settings.study, settings.storage_url)


def is_accuracy(study: StudyRecord) -> bool:
    """Whether the study's metric is a share of examples, to be shown in percent."""
    return study.fingerprint.get("metric") == "accuracy"


@with_settings("storage")
def studies(settings: Settings, form: FormatOption = Format.TABLE) -> None:
    """List the studies of a database."""
    from ranksearch.database import Database

    with Database.open(settings.storage_url, create=False) as database:
        frame = database.studies_frame().set_index("study")
    if frame.empty and form is Format.TABLE:
        raise NotFoundError("the database holds no study yet; `ranksearch run` makes one")
    print_frame(frame, STUDY_COLUMNS, form)


STUDY_COLUMNS = (
    Column(header="study", cell=lambda row: row["study"], justify="left"),
    Column(header="created", cell=lambda row: row["created"][:16].replace("T", " "), justify="left", rank=2),
    Column(header="objectives", cell=lambda row: row["objectives"].replace(",", ", "), justify="left", rank=3),
    Column(header="device", cell=lambda row: row["device"], justify="left", rank=1),
    Column(header="complete", cell=lambda row: str(row["num_complete"])),
    Column(header="failed", cell=lambda row: str(row["num_failed"])),
    Column(header="running", cell=lambda row: str(row["num_running"])),
    Column(header="device model", cell=lambda row: figures.device(row["device_model"]), justify="left", rank=4),
)


@with_settings("storage")
def status(
    settings: Settings,
    study: Annotated[
        str | None, typer.Argument(help="Its name; the newest study when absent.", show_default=False)
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """How far a study is, what it has found, and whether it is running now."""
    from ranksearch.database import Database, is_running
    from ranksearch.study.summary import fastest_within

    opened = open_study(settings, study)
    frame, percent = opened.trials(), is_accuracy(opened.record)
    fastest = fastest_within(frame)
    with Database.open(settings.storage_url, create=False) as database:
        running = is_running(database, opened.name)
    found = {
        "study": opened.name,
        "is_running": running,
        **{f"num_{state}": int((frame.state == state).sum()) for state in ("complete", "pruned", "failed", "running")},
        "num_pareto": len(opened.pareto()),
        "fastest": [
            {"max_drop": drop, "trial": number, **_figures(frame.loc[number].to_dict())}
            for drop, number in fastest.items()
        ],
    }
    if form is Format.TABLE:
        _print_status(found, percent)
    else:
        flat = {k: v for k, v in found.items() if k != "fastest"}
        rows = [{**flat, **best} for best in found["fastest"]] or [flat]
        print_rows(rows if form is Format.CSV else [found], (), form)


def _figures(row: Row) -> dict[str, Any]:
    names = ("accuracy", "accuracy_low", "accuracy_high", "speedup", "latency_ratio_low", "latency_ratio_high")
    return {name: float(row[name]) for name in names}


def _print_status(found: Row, percent: bool) -> None:
    counts = ", ".join(
        f"{found[f'num_{s}']} {s}" for s in ("complete", "pruned", "failed", "running") if found[f"num_{s}"]
    )
    state = "running now" if found["is_running"] else "no run is going on"
    print(f"{found['study']}: {state}; {counts or 'no trials yet'}; {found['num_pareto']} on the Pareto front")
    print()
    columns = (
        Column(
            header="fastest within", cell=lambda row: figures.drop(row["max_drop"], percent=percent), justify="left"
        ),
        Column(header="trial", cell=lambda row: str(row["trial"])),
        Column(header="speed-up", cell=figures.speedup),
        Column(header="accuracy", cell=lambda row: figures.accuracy_of(row, percent=percent)),
    )
    print_rows(found["fastest"], columns, Format.TABLE)


@with_settings("study", "storage")
def trials(
    settings: Settings,
    every: Annotated[bool, typer.Option("--all", help="Also failures that a retry has replaced.")] = False,
    state: Annotated[str | None, typer.Option("--state", help="complete, pruned, failed or running.")] = None,
    sort: SortOption = None,
    limit: LimitOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List a study's trials."""
    study = open_study(settings)
    frame = study.trials(all_rows=every)
    if state is not None:
        frame = frame.loc[frame.state == _known_state(state)]
    print_frame(_cut(frame, sort, limit), trial_columns(study.record, with_state=True), form)


def _known_state(state: str) -> str:
    allowed = ("complete", "pruned", "failed", "running")
    if state not in allowed:
        raise ConfigError(f"--state is {state!r}{nearest(state, allowed)}; it must be one of {', '.join(allowed)}")
    return state


def _cut(frame: "pd.DataFrame", sort: str | None, limit: int | None) -> "pd.DataFrame":
    if sort is not None:
        allowed = ["trial", *frame.columns]
        if sort not in allowed:
            raise ConfigError(f"--sort is {sort!r}{nearest(sort, allowed)}; it must be one of {', '.join(allowed)}")
        frame = frame.sort_values(sort, ascending=not sort.startswith(LARGER_IS_BETTER), kind="stable")
    return frame if limit is None else frame.head(limit)


@with_settings("study", "storage")
def pareto(
    settings: Settings,
    max_latency_ms: MaxLatencyOption = None,
    min_speedup: MinSpeedupOption = None,
    min_accuracy: MinAccuracyOption = None,
    max_drop: MaxDropOption = None,
    sort: SortOption = None,
    limit: LimitOption = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List the trials that no other trial beats, fastest first."""
    from ranksearch.study.study import ParetoFilter

    wanted = ParetoFilter(
        max_latency_ms=max_latency_ms, min_speedup=min_speedup, min_accuracy=min_accuracy, max_drop=max_drop
    )
    study = open_study(settings)
    front = study.pareto(
        max_latency_ms=max_latency_ms, min_speedup=min_speedup, min_accuracy=min_accuracy, max_drop=max_drop
    )
    print_frame(_cut(front, sort, limit), trial_columns(study.record), form)
    if front.empty:
        raise InfeasibleError(infeasible(study, wanted))


def infeasible(study: "Study", wanted: "ParetoFilter") -> str:
    """One line: what was asked for, and what comes nearest."""
    from ranksearch.study.summary import dense_row, nearest_miss

    trials, front = study.trials(), study.pareto()
    dense = dense_row(trials)
    number = nearest_miss(front, wanted, None if dense is None else float(dense.accuracy))
    if number is None:
        return f"study {study.name!r} has no complete trial yet"
    row, percent = front.loc[number].to_dict(), is_accuracy(study.record)
    accuracy = figures.accuracy(row["accuracy"], percent=percent)
    below = "" if dense is None else f" (dense {figures.accuracy(dense.accuracy, percent=percent)})"
    shown = f"{row['speedup']:.2f}×, {figures.latency(row['latency_ms'])}, {accuracy}{below}"
    asked = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in _asked(wanted).items())
    return f"no trial meets {asked}; nearest is trial {number} with {shown}; ask for less or raise --budget"


def _asked(wanted: "ParetoFilter") -> dict[str, float]:
    named = {
        "max_latency_ms": wanted.max_latency_ms,
        "min_speedup": wanted.min_speedup,
        "min_accuracy": wanted.min_accuracy,
        "max_drop": wanted.max_drop,
    }
    return {name: value for name, value in named.items() if value is not None}


def trial_columns(study: StudyRecord, *, with_state: bool = False) -> tuple[Column, ...]:
    """How a study's trials are shown, the most needed columns with the smallest ranks."""
    percent = is_accuracy(study)
    state = (Column(header="state", cell=lambda row: row["state"], justify="left"),) if with_state else ()
    recipe = (Column(header="recipe", cell=lambda row: row["recipe"] or "its own", justify="left", rank=5),)
    reason = (Column(header="reason", cell=lambda row: row["reason"] or "", justify="left", wrap=True, rank=4),)
    return (
        Column(header="trial", cell=lambda row: str(row["trial"])),
        *state,
        Column(header="accuracy", cell=lambda row: figures.accuracy_of(row, percent=percent)),
        Column(header="test", cell=lambda row: figures.accuracy(row["test_accuracy"], percent=percent), rank=1),
        Column(header="speed-up", cell=figures.speedup),
        Column(header="latency", cell=lambda row: figures.latency(row["latency_ms"]), rank=3),
        Column(header="parameters", cell=lambda row: figures.parameters(row["parameters"]), rank=3),
        Column(header="MACs", cell=lambda row: figures.macs(row["macs"]), rank=4),
        Column(header="methods", cell=lambda row: figures.methods(row["plan"]), justify="left", wrap=True, rank=2),
        *(recipe if len(study.recipes) > 1 else ()),
        Column(header="origin", cell=lambda row: row["origin"], justify="left", rank=5),
        *(reason if with_state else ()),
    )
