"""`compare STUDY_A STUDY_B`: two studies of one model side by side."""

import json
import sys
from typing import Annotated

import typer

from ranksearch.cli import figures
from ranksearch.cli.options import FormatOption, with_settings
from ranksearch.cli.output import Column, Format, Row, print_frame, print_rows, records_of
from ranksearch.cli.queries import is_accuracy
from ranksearch.settings import Settings

__all__ = ["compare"]


@with_settings("storage")
def compare(
    settings: Settings,
    study_a: Annotated[str, typer.Argument(help="A study's name.", metavar="STUDY_A")],
    study_b: Annotated[str, typer.Argument(help="Another one's, of the same model.", metavar="STUDY_B")],
    storage_b: Annotated[
        str | None, typer.Option("--storage-b", help="Where the other one is kept, if elsewhere.", metavar="URL")
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Put two devices or backends side by side: the plans that both have measured, and the fastest trials of each.

    Where two 95 % intervals overlap, it is a tie. CSV has the plans alone.
    """
    from ranksearch.study.comparison import check_same_model, differences, fastest_of, plans_in_both
    from ranksearch.study.study import Study

    a, b = Study.open(study_a, settings.storage_url), Study.open(study_b, storage_b or settings.storage_url)
    of_a, of_b = a.record, b.record
    check_same_model(of_a, of_b)
    trials_a, trials_b = a.trials(), b.trials()
    plans = plans_in_both(trials_a, trials_b).set_index("plan")
    fastest = [best.to_json() for best in (*fastest_of(trials_a, "a"), *fastest_of(trials_b, "b"))]
    differing = differences(of_a, of_b)
    if form is Format.CSV:
        print_frame(plans, (), form)
    elif form is Format.JSON:
        found = {"study_a": a.name, "study_b": b.name, "differences": {k: list(v) for k, v in differing.items()}}
        found |= {"plans": records_of(plans), "fastest": fastest}
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        percent = is_accuracy(of_a)
        for place, (side, name) in enumerate((("a", a.name), ("b", b.name))):
            print(f"{side}  {name}: {_what_differs(differing, place)}")
        print(f"\n{len(plans)} plans that both have measured")
        print_rows(records_of(plans), PLAN_COLUMNS, Format.TABLE)
        print()
        print_rows(fastest, _fastest_columns(percent), Format.TABLE)


def _what_differs(differing: dict[str, tuple[str, str]], place: int) -> str:
    return ", ".join(f"{name} {both[place]}" for name, both in differing.items()) or "measured as the other one"


def _speedup(row: Row, side: str = "") -> str:
    value, low, high = (row[f"{name}{side}"] for name in ("speedup", "speedup_low", "speedup_high"))
    return f"{value:.2f}× [{low:.2f}, {high:.2f}]"


PLAN_COLUMNS = (
    Column(header="trial a", cell=lambda row: str(row["trial_a"])),
    Column(header="trial b", cell=lambda row: str(row["trial_b"])),
    Column(header="speed-up a", cell=lambda row: _speedup(row, "_a")),
    Column(header="speed-up b", cell=lambda row: _speedup(row, "_b")),
    Column(header="gains more", cell=lambda row: row["faster"], justify="left"),
    Column(header="methods", cell=lambda row: figures.methods(row["plan"]), justify="left", wrap=True, rank=1),
)


def _fastest_columns(percent: bool) -> tuple[Column, ...]:
    return (
        Column(header="study", cell=lambda row: row["study"], justify="left"),
        Column(
            header="fastest within", cell=lambda row: figures.drop(row["max_drop"], percent=percent), justify="left"
        ),
        Column(header="trial", cell=lambda row: str(row["trial"])),
        Column(header="speed-up", cell=_speedup),
        Column(header="accuracy", cell=lambda row: figures.accuracy(row["accuracy"], percent=percent)),
        Column(
            header="tied with", cell=lambda row: ", ".join(map(str, row["ties"])), justify="left", wrap=True, rank=1
        ),
    )
