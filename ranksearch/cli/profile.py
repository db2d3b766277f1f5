"""`profile --per-layer`: what each layer of a model bears by itself."""

import json
from typing import Annotated

import typer

from ranksearch.cli import figures
from ranksearch.cli.options import FormatOption, with_settings
from ranksearch.cli.output import Column, Format, Row, print_frame
from ranksearch.settings import Settings

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


@with_settings("model", "weights", "data", "metric", "normalize", "seed", "device", "measure")
def profile(
    settings: Settings,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="One layer at a time made smaller.")],  # noqa: ARG001
    method: Annotated[list[str], typer.Option(help="A method to use; may be given several times.")] = METHODS,
    kept: Annotated[float, typer.Option(help="Share of its weights that a layer keeps at most.")] = 0.5,
    match: Annotated[str, typer.Option(help="Which layers: a name, or a pattern with * and ?.")] = "*",
    together: Annotated[
        list[str], typer.Option(help="A pattern whose layers are changed all at once; may be given several times.")
    ] = NONE,
    form: FormatOption = Format.TABLE,
) -> None:
    """Print what each layer bears: accuracy change, network speed-up, weights kept. Nothing is fine-tuned."""
    import pandas as pd
    import torch

    from ranksearch.sensitivity import layer_choices, layer_table
    from ranksearch.workbench import Workbench

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Workbench(settings.task(), torch.device(device))
    choices = layer_choices(bench, methods=method, kept=kept, match=match)
    table = layer_table(bench, choices, together=together, measure=settings.measure, seed=settings.seed)
    rows = [row.to_json() for row in table]
    frame = pd.DataFrame([row | {"plan": json.dumps(row["plan"])} for row in rows]).set_index("layer")
    print_frame(frame, COLUMNS, form)
