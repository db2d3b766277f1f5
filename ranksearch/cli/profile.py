"""`profile`: what every option of every layer costs and gains, and what each layer of a model bears by itself."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ranksearch.cli import figures
from ranksearch.cli.bars import layer_bars
from ranksearch.cli.options import FormatOption, with_settings
from ranksearch.cli.output import Column, Format, Row, print_frame, print_rows
from ranksearch.settings import Settings

if TYPE_CHECKING:
    from ranksearch.records import LayerRecord, Profile, Staircase
    from ranksearch.space import SpaceConfig
    from ranksearch.study.search import SearchConfig

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
    *("model", "weights", "data", "metric", "normalize", "space", "profile_seconds", "seed", "storage", "device"),
    *("finetune.factors", "finetune.calibration_examples", "finetune.threads", "measure"),
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
    output: Annotated[
        Path | None, typer.Option(help="Also draw it into this file: .png, .svg, .pdf or .html. Needs matplotlib.")
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Print what every option of every layer costs and gains here, and what low-rank can reach. Nothing is trained.

    `run` makes the same profile before its first trial. Latencies of layers are kept in --storage, so that another net
    measures only the layers that are new. With --per-layer: each layer by itself, with accuracies.
    """
    if per_layer:
        _print_layers(settings, {"methods": method, "kept": kept, "match": match}, together, form)
        return
    config = settings.search_config()
    if output:
        from ranksearch.picture import check_output

        check_output(output)
    layers, found = _profiled(config, settings)
    _print_options(layers, found, form)
    for line in ("", *_notes(found, config.space)):
        print(line, file=sys.stderr)
    if output:
        from ranksearch.picture import draw_profile

        draw_profile(found, output, title=f"{_short(settings.model)}: what low-rank layers save")
        print(f"picture  {output}", file=sys.stderr)


def _short(model: str | None) -> str:
    """Without the folders of its file."""
    return model.rpartition("/")[2] if model else "the built-in example"


def _print_layers(settings: Settings, chosen: dict[str, Any], together: list[str], form: Format) -> None:
    import pandas as pd
    import torch

    from ranksearch.sensitivity import layer_choices, layer_table
    from ranksearch.workbench import Workbench

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Workbench(settings.task(), torch.device(device))
    choices = layer_choices(bench, **chosen)
    table = layer_table(bench, choices, together=together, measure=settings.measure, seed=settings.seed)
    rows = [row.to_json() for row in table]
    frame = pd.DataFrame([row | {"plan": json.dumps(row["plan"])} for row in rows]).set_index("layer")
    print_frame(frame, COLUMNS, form)


def _profiled(config: "SearchConfig", settings: Settings) -> "tuple[tuple[LayerRecord, ...], Profile]":
    """With what the database knows; what is new is stored there."""
    import torch

    from ranksearch import latency
    from ranksearch.database import Database
    from ranksearch.space import layer_records
    from ranksearch.study.profiles import made_profile
    from ranksearch.study.search import device_of
    from ranksearch.workers.executor import WorkerSetup
    from ranksearch.workers.inline import InlineExecutor

    device = torch.device(device_of(config))
    executor = InlineExecutor(WorkerSetup(settings.task(), device.type, None), config.cluster.cpus_per_trial)
    layers = layer_records(config.space, executor.call(lambda bench: bench.layers))
    measure = latency.resolve(config.measure, device)
    latency.check(measure, device)
    with Database.open(config.storage) as database:
        found = made_profile(
            layers, latency.identity(measure, device), measure, config.recipes[0].finetune,
            database=database, executor=executor, seconds=config.profile_seconds,
        )  # fmt: skip
    return layers, found


# --- what is said ----------------------------------------------------------------------------------------------------


def _print_options(layers: "tuple[LayerRecord, ...]", found: "Profile", form: Format) -> None:
    dense = {layer.name: layer.cost for layer in layers}
    rows = [
        {
            "layer": option.layer,
            "option": str(option.choice),
            "latency_change": option.latency,
            "latency_deviation": option.latency_deviation,
            "layer_ms": option.layer_ms,
            "is_latency_measured": option.is_latency_measured,
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


def _notes(found: "Profile", space: "SpaceConfig") -> list[str]:
    from ranksearch.profiling import verdict

    small = [option for option in found.options if not option.choice.is_dense]
    taken = sum(not option.is_latency_measured for option in small)
    known = f"; {taken} of {len(small)} options taken over from earlier profiles" if taken else ""
    return [
        *layer_bars(found),
        "",
        f"the dense network takes {figures.latency(found.dense_ms)}{known}",
        *_steps(found.staircase, space),
        *verdict(found).splitlines(),
    ]


def _steps(stairs: "Staircase | None", space: "SpaceConfig") -> list[str]:
    if stairs is None:
        return []
    on = f"({stairs.method} on {stairs.shape})"
    if stairs.step == 1:
        return [f"latency rises evenly with the rank here, without steps {on}"]
    lines = [f"latency rises in steps of {stairs.step} ranks here {on}"]
    if space.ranks.values is None and space.ranks.multiple != stairs.step:
        lines.append(
            f"warning: the space tries multiples of {space.ranks.multiple}; "
            f"ranks.multiple: {stairs.step} in its file takes the last rank of every step"
        )
    return lines


def _latency(row: Row) -> str:
    return f"{'' if row['is_latency_measured'] else '~'}{100 * row['latency_change']:+.2f} %"


def _loss(row: Row) -> str:
    return figures.NONE if row["loss"] is None else f"{'' if row['is_loss_measured'] else '~'}{row['loss']:.4f}"


OPTION_COLUMNS = (
    Column(header="layer", cell=lambda row: row["layer"], justify="left"),
    Column(header="option", cell=lambda row: row["option"], justify="left"),
    Column(header="latency", cell=_latency),
    Column(header="±", cell=lambda row: f"{100 * row['latency_deviation']:.2f}", rank=2),
    Column(header="layer", cell=lambda row: figures.latency(row["layer_ms"]), rank=3),
    Column(header="loss (nats)", cell=_loss),
    Column(header="error", cell=lambda row: f"{row['error']:.3f}", rank=1),
    Column(header="parameters", cell=lambda row: f"{100 * row['parameters_kept']:.0f} %", rank=3),
    Column(header="MACs", cell=lambda row: f"{100 * row['macs_kept']:.0f} %", rank=2),
)
