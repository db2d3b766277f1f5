"""Flags that several commands share. Those of a run's settings are made from `Settings`, so that none is forgotten."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from ranksearch.cli.output import Format
from ranksearch.settings import TABLES, Settings

__all__ = [
    "ALL_SETTINGS",
    "FormatOption",
    "MaxDropOption",
    "MaxLatencyOption",
    "MinAccuracyOption",
    "MinSpeedupOption",
    "with_settings",
    "with_table",
]

P = ParamSpec("P")

# panel of the help -> settings
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Model and data": ("model", "weights", "train", "data", "metric", "normalize"),
    "Search": (
        *("space", "budget", "sampler", "profile_seconds", "prune_below", "longer", "seed", "study", "storage"),
        *("max_failures", "weights_limit_mb"),
    ),
    "Where trials run": (
        *("device", "executor", "address", "gpus_per_trial"),
        *("cpus_per_trial", "max_concurrent", "trial_timeout"),
    ),
    "A trial's fine-tuning": ("finetune",),
    "Measuring latency": ("measure",),
}
ALL_SETTINGS = tuple(name for names in GROUPS.values() for name in names)
PANEL_OF = {name: panel for panel, names in GROUPS.items() for name in names}

TABLE_HELP: Mapping[tuple[str, str], str] = {
    ("finetune", "steps"): "Training steps of a trial at most; 0: as many as epochs and seconds allow, or none.",
    ("finetune", "allocation"): "fixed, or by_loss: 0, 1, 2 or 4 times as long, as one shot loses more.",
    ("finetune", "epochs"): "Passes over the training data at most; 0: as many as steps and seconds allow.",
    ("finetune", "seconds"): "Seconds of training at most; 0: no limit. Accuracy then depends on the machine.",
    ("finetune", "batch_size"): "Examples in a training step.",
    ("finetune", "augmentation"): "data (the data set's own), none, or contrast (its own, then random contrast).",
    ("finetune", "optimizer"): "sgd, adam or adamw.",
    ("finetune", "learning_rate"): "At the start.",
    ("finetune", "schedule"): "linear, cosine, step or constant.",
    ("finetune", "decay_every"): "With schedule step: a tenth each time this part of the training is over.",
    ("finetune", "momentum"): "Of SGD; Adam's beta 1.",
    ("finetune", "weight_decay"): "Of the optimizer.",
    ("finetune", "temperature"): "Softens the dense model's outputs for distillation.",
    ("finetune", "distillation"): "Share of the distillation loss; the rest is the task's own.",
    ("finetune", "block_distillation"): "Weight of how far each block's outputs are from the dense model's.",
    ("finetune", "factors"): "plain, or fisher: weighted by what the loss asks of each layer.",
    ("finetune", "init"): "decompose, or random: train from scratch.",
    ("finetune", "inherit"): "Whether proposals start from the trained weights of a trial with a similar plan.",
    ("finetune", "reconstruction_steps"): "Steps of every replaced layer by itself, before all train together.",
    ("finetune", "atcd"): "none, autograd (the same), or project: train composed weights, decompose them again.",
    ("finetune", "atcd_period"): "Steps between two projections of atcd.",
    ("finetune", "correlation_weight"): "Of linearconv's correlation regulariser; 0.01 in its source.",
    ("finetune", "correlation_period"): "Steps between two that the regulariser acts on.",
    ("finetune", "sparsity_until"): "linearconv_sparse loses coefficients in this part of the training; 0: before it.",
    ("finetune", "ema"): "Decay of the weights' moving average, evaluated instead of them; 0: none.",
    ("finetune", "calibration_examples"): "Examples that BatchNorm statistics are re-estimated from.",
    ("finetune", "precision"): "auto, float32 or bfloat16.",
    ("finetune", "layout"): "auto, contiguous or channels_last.",
    ("finetune", "threads"): "CPU threads of training; 0: what is faster.",
    ("measure", "backend"): "How models are run: eager, onnxruntime, cuda-graph or compile.",
    ("measure", "fold_batchnorm"): "Whether BatchNorm is folded into the layer before it, in both models.",
    ("measure", "batch_size"): "Examples in a measured pass; 0: 8 on a CPU, 32 on a GPU.",
    ("measure", "also_batch_sizes"): "More sizes, like 1,32, that the final front is measured with, too.",
    ("measure", "threads"): "CPU threads of a measured pass.",
    ("measure", "dtype"): "float32, bfloat16 or float16.",
    ("measure", "layout"): "contiguous or channels_last.",
    ("measure", "half_width"): "Measure until the ratio's 95 % interval is this narrow on either side …",
    ("measure", "max_seconds"): "… or for this long.",
    ("measure", "min_blocks"): "Paired blocks at least.",
    ("measure", "iterations_per_block"): "Passes of each model in a block.",
}

FormatOption = Annotated[Format, typer.Option("--format", help="How to print.", show_default=True)]
MaxLatencyOption = Annotated[float | None, typer.Option("--max-latency-ms", help="At most this latency.")]
MinSpeedupOption = Annotated[
    float | None, typer.Option("--min-speedup", help="At least so many times the dense speed.")
]
MinAccuracyOption = Annotated[float | None, typer.Option("--min-accuracy", help="At least this accuracy, 0 to 1.")]
MaxDropOption = Annotated[
    float | None, typer.Option("--max-drop", help="At most this far below the dense accuracy; 0.01 is one point.")
]


def with_table(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command a flag for every key of a table, without the table's name before it. It takes those that were
    given as its argument of the table's name. Files and the environment do not speak here: what they say of the table
    is meant for the trials of a search."""
    keys = {f.name: TABLE_HELP[name, f.name] for f in fields(TABLES[name])}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != name]
        own = [_parameter(key, text, None, PANEL_OF[name]) for key, text in keys.items()]

        def parsed(*arguments: Any, **given: Any) -> None:
            flags = {key: given.pop(key) for key in keys}
            told = {key: value for key, value in flags.items() if value is not None}
            command(*arguments, **given, **{name: Settings.table(name, told)})

        parsed.__signature__ = inspect.Signature([*parameters, *own])  # type: ignore[attr-defined]
        parsed.__name__, parsed.__doc__ = command.__name__, command.__doc__
        return parsed

    return decorate


def with_settings(*names: str) -> Callable[[Callable[Concatenate[Settings, P], None]], Callable[..., None]]:
    """Gives a command the flags of these settings, and --config. It takes a `Settings` as its first argument.

    A table's name stands for all of its keys, TABLE.KEY for one.
    """
    options = [option for name in names for option in _options(name)]

    def decorate(command: Callable[Concatenate[Settings, P], None]) -> Callable[..., None]:
        _, *own = inspect.signature(command, eval_str=True).parameters.values()

        def parsed(*, config: Path | None, **given: Any) -> None:
            flags: dict[str, Any] = {}
            for table, key, parameter in options:
                value = given.pop(parameter.name)
                if value is not None:
                    (flags.setdefault(table, {}) if table else flags)[key] = value
            command(Settings.read(flags, config), **given)  # pyright: ignore[reportCallIssue] - by the signature below

        parameters = [*own, *(parameter for *_, parameter in options), CONFIG]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        parsed.__annotations__ = {p.name: p.annotation for p in parameters}
        parsed.__name__, parsed.__doc__ = command.__name__, command.__doc__
        return parsed

    return decorate


def _options(name: str) -> list[tuple[str | None, str, inspect.Parameter]]:
    """(table, key, parameter) of a setting, of a key of a table, or of every one."""
    table, _, key = name.partition(".")
    panel = PANEL_OF[table]
    if table in TABLES:
        return [
            (table, f.name, _parameter(f"{table}_{f.name}", TABLE_HELP[table, f.name], f.default, panel))
            for f in fields(TABLES[table])
            if key in ("", f.name)
        ]
    field = Settings.model_fields[name]
    return [(None, name, _parameter(name, field.description or "", field.default, panel))]


def _parameter(name: str, description: str, default: Any, panel: str) -> inspect.Parameter:
    """A flag that takes text: `Settings` reads and checks it, as it does what a file or the environment says."""
    flag = typer.Option(
        f"--{name.replace('_', '-')}",
        help=description if default in (None, ()) else f"{description} Default {default}.",
        metavar="VALUE",
        show_default=False,
        rich_help_panel=panel,
    )
    annotation = Annotated[str | None, flag]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        typer.Option("--config", help="A TOML file of settings. ranksearch.toml here is read in any case."),
    ],
)
