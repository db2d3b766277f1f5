"""`profile`: what every option of every layer costs and gains, and what each layer of a model bears by itself."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ranksearch.cli import figures
from ranksearch.cli.options import FormatOption, with_settings
from ranksearch.cli.output import Column, Format, Row, print_frame, print_rows
from ranksearch.settings import Settings

if TYPE_CHECKING:
    from ranksearch.workbench import Workbench

__all__ = ["profile"]

METHODS = ["svd", "spatial_svd"]
NONE: list[str] = []


def _becomes(row: Row) -> str:
    return figures.methods(row["plan"]) if len(row["plan"]) > 1 else next(iter(row["plan"].values()))


COLUMNS = (
    Column(header="layer", cell=lambda row: row["layer"], justify="left"),
    Column(header="becomes", cell=_becomes, justify="left", rank=1),
    Column(header="accuracy change", cell=lambda row: f"{100 * row['accuracy_change']:+.2f} %"),
    Column(header="speed-up", cell=figures.speedup),
    Column(header="weights kept", cell=lambda row: f"{100 * row['weights_kept']:.0f} %"),
)


@with_settings(
    "model", "weights", "data", "metric", "normalize", "space", "profile_seconds", "seed", "device", "measure"
)
def profile(
    settings: Settings,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="One layer at a time made smaller: accuracy and speed-up of the whole.")
    ] = False,
    method: Annotated[
        list[str], typer.Option(help="With --per-layer: a method to use; may be given several times.")
    ] = METHODS,
    kept: Annotated[
        float, typer.Option(help="With --per-layer: share of its weights that a layer keeps at most.")
    ] = 0.5,
    match: Annotated[
        str, typer.Option(help="With --per-layer: which layers: a name, or a pattern with * and ?.")
    ] = "*",
    together: Annotated[
        list[str],
        typer.Option(help="With --per-layer: a pattern of layers changed all at once; may be given several times."),
    ] = NONE,
    form: FormatOption = Format.TABLE,
) -> None:
    """Print what every option of every layer costs and gains here, and what low-rank can reach. Nothing is trained.

    `run` makes the same profile before its first trial. With --per-layer: each layer by itself, with accuracies.
    """
    import torch

    from ranksearch.workbench import Workbench

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Workbench(settings.task(), torch.device(device))
    if per_layer:
        _print_layers(bench, settings, {"methods": method, "kept": kept, "match": match}, together, form)
    else:
        _print_options(bench, settings, form)


def _print_layers(
    bench: "Workbench", settings: Settings, chosen: dict[str, Any], together: list[str], form: Format
) -> None:
    import pandas as pd

    from ranksearch.sensitivity import layer_choices, layer_table

    choices = layer_choices(bench, **chosen)
    table = layer_table(bench, choices, together=together, measure=settings.measure, seed=settings.seed)
    rows = [row.to_json() for row in table]
    frame = pd.DataFrame([row | {"plan": json.dumps(row["plan"])} for row in rows]).set_index("layer")
    print_frame(frame, COLUMNS, form)


def _print_options(bench: "Workbench", settings: Settings, form: Format) -> None:
    from ranksearch.profiling import profile_options, verdict
    from ranksearch.space import layer_records, load_space

    layers = layer_records(load_space(settings.space), bench.layers)
    seconds = {"latencies": settings.profile_seconds, "losses": settings.profile_seconds}
    found = profile_options(bench, layers, settings.measure, seconds=seconds, seed=settings.seed)
    dense = {layer.name: layer.cost for layer in layers}
    rows = [
        {
            "layer": option.layer,
            "option": str(option.choice),
            "latency_change": option.latency,
            "latency_deviation": option.latency_deviation,
            "loss": option.loss,
            "is_loss_measured": option.is_loss_measured,
            "error": option.error,
            "parameters_kept": option.cost.parameters / dense[option.layer].parameters,
            "macs_kept": option.cost.macs / dense[option.layer].macs,
        }
        for option in found.options
        if not option.choice.is_dense
    ]
    print_rows(rows, OPTION_COLUMNS, form)
    for line in ("", *verdict(found).splitlines()):
        print(line, file=sys.stderr)


def _loss(row: Row) -> str:
    return figures.NONE if row["loss"] is None else f"{'' if row['is_loss_measured'] else '~'}{row['loss']:.4f}"


OPTION_COLUMNS = (
    Column(header="layer", cell=lambda row: row["layer"], justify="left"),
    Column(header="option", cell=lambda row: row["option"], justify="left"),
    Column(header="latency", cell=lambda row: f"{100 * row['latency_change']:+.2f} %"),
    Column(header="±", cell=lambda row: f"{100 * row['latency_deviation']:.2f}", rank=2),
    Column(header="loss (nats)", cell=_loss),
    Column(header="error", cell=lambda row: f"{row['error']:.3f}", rank=1),
    Column(header="parameters", cell=lambda row: f"{100 * row['parameters_kept']:.0f} %", rank=3),
    Column(header="MACs", cell=lambda row: f"{100 * row['macs_kept']:.0f} %", rank=2),
)
