"""A finished trial as a folder one can ship, and back.

    model.safetensors   the trained weights
    plan.json           which layer became what, the figures, and what they were measured on
    README.md           the same for people, and how to load it

Nothing in it runs code when it is read. `load` rebuilds the layers from the plan and fills in the weights.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ranksearch.compress import compress
from ranksearch.errors import ConfigError, ModelError, NotFoundError, SpaceError, StorageError
from ranksearch.layers import list_layers
from ranksearch.records import (
    Environment,
    Measurement,
    Plan,
    Record,
    Score,
    StudyRecord,
    TrialRecord,
    TrialState,
)
from ranksearch.tasks.example import ExampleNet
from ranksearch.tasks.models import torchvision_model

__all__ = ["Contents", "check_free", "export", "is_rebuildable", "load", "read", "rebuilt"]

FORMAT = 1  # raise it when `load` could not read what an older one wrote, or the other way round
WEIGHTS, PLAN, README = "model.safetensors", "plan.json", "README.md"
FILES = frozenset({WEIGHTS, PLAN, README})
FOLDERS = re.compile(r"[^:]*/")  # of a path: where files lay on the machine of the study concerns nobody else
EXAMPLE, TORCHVISION = "example", "torchvision:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents(Record):
    """What plan.json holds."""

    format: int
    study: str
    trial: int
    settings: Mapping[str, str]  # how model and data were named
    fingerprint: Mapping[str, str]
    layers: Mapping[str, str]  # of the dense model: name -> kind and shape
    plan: Plan
    metric: str
    scores: Mapping[str, Score]  # split -> this model's score
    measurement: Measurement | None
    parameters: int | None
    macs: int | None
    seed: int
    environment: Environment | None
    input_shape: tuple[int, ...] | None  # of one example, where it is a single tensor
    num_outputs: int | None


def export(
    model: nn.Module,
    record: TrialRecord,
    study: StudyRecord,
    directory: Path | str,
    *,
    example_input: Any = None,
    scores: Mapping[str, Score] | None = None,
    force: bool = False,
) -> Path:
    """Write a trial's model to a new folder, whole or not at all. `force` replaces an earlier export.

    example_input: a batch of one, to note what goes in and comes out. scores: of this model, by split; the trial's own
    on validation where absent.
    Raises ConfigError where something else is in the way, ModelError for a trial that has no model, StorageError where
    the disk refuses.
    """
    target = Path(directory).absolute()
    check_free(target, force=force)
    contents = _contents(model, record, study, example_input, scores)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
        (partial / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        (partial / PLAN).write_text(json.dumps(contents.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (partial / README).write_text(_readme(contents), encoding="utf-8")
        _put_in_place(partial, target)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def check_free(target: Path, *, force: bool) -> None:
    if target.exists() and not target.is_dir():
        raise ConfigError(f"output {target} is a file; name a new folder")
    found = sorted(entry.name for entry in target.iterdir()) if target.is_dir() else []
    if strangers := [name for name in found if name not in FILES]:
        raise ConfigError(f"output folder {target} is not empty: it holds {strangers[0]!r}; name a new one")
    if found and not force:
        raise ConfigError(f"output folder {target} holds an export already; name a new one, or replace it with --force")


def _put_in_place(partial: Path, target: Path) -> None:
    """An earlier export gives way only once the new one is complete."""
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _contents(
    model: nn.Module, record: TrialRecord, study: StudyRecord, example_input: Any, scores: Mapping[str, Score] | None
) -> Contents:
    result = record.result
    if record.state is not TrialState.COMPLETE or result is None or result.score is None:
        raise ModelError(f"trial {record.number} is {record.state}; only a complete trial has a model")
    return Contents(
        format=FORMAT,
        study=study.name,
        trial=record.number,
        settings={name: FOLDERS.sub("", value) for name, value in study.settings.items()},
        fingerprint=study.fingerprint,
        layers={layer.name: f"{layer.kind} {layer.shape}" for layer in study.layers},
        plan=record.spec.plan,
        metric=study.fingerprint.get("metric", "accuracy"),
        scores=scores or {"validation": result.score},
        measurement=result.measurement,
        parameters=result.parameters,
        macs=result.macs,
        seed=record.spec.seed,
        environment=result.environment,
        input_shape=tuple(example_input.shape[1:]) if isinstance(example_input, Tensor) else None,
        num_outputs=_num_outputs(model, example_input) if isinstance(example_input, Tensor) else None,
    )


@torch.inference_mode()
def _num_outputs(model: nn.Module, example_input: Tensor) -> int | None:
    outputs = model(example_input)
    return outputs.shape[1] if isinstance(outputs, Tensor) and outputs.dim() > 1 else None


# --- the page for people ---------------------------------------------------------------------------------------------


def _readme(contents: Contents) -> str:
    model = contents.settings.get("model", contents.study)
    return "\n".join(
        [
            f"# {model.rpartition(':')[2]}, compressed",
            "",
            f"Trial {contents.trial} of the study `{contents.study}`, exported by ranksearch: "
            f"{len(contents.plan)} of {len(contents.layers)} layers are factorized.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in _figures(contents)),
            "",
            *_measured_on(contents),
            "",
            "## Load it",
            "",
            "```python",
            "import ranksearch",
            "",
            _load_line(contents),
            "```",
            "",
            *_use(contents),
            "",
            "## What became of each layer",
            "",
            "| layer | was | is |",
            "|---|---|---|",
            *(f"| {name} | {contents.layers.get(name, '')} | {choice} |" for name, choice in contents.plan.items()),
            "",
            "All other layers are as they were. plan.json has the same for programs.",
            "",
        ]
    )


def _figures(contents: Contents) -> list[tuple[str, str]]:
    rows = [
        (f"{contents.metric}, {split}", f"{s.value:.4f} [{s.low:.4f}, {s.high:.4f}], n = {s.num_examples}")
        for split, s in contents.scores.items()
    ]
    if m := contents.measurement:
        rows.append(("latency against dense", f"{m.ratio:.3f} [{m.ratio_low:.3f}, {m.ratio_high:.3f}]"))
        rows.append(("latency", f"{m.p50_ms:.3f} ms, dense {m.dense_p50_ms:.3f} ms, batch {m.batch_size}"))
    if contents.parameters is not None:
        rows.append(("parameters", f"{contents.parameters:,}"))
    if contents.macs is not None:
        rows.append(("multiply-accumulates an example", f"{contents.macs:,}"))
    return rows


def _measured_on(contents: Contents) -> list[str]:
    """Device, versions, seed: what the figures hold for."""
    if (e := contents.environment) is None:
        return []
    measured = contents.measurement.identity if contents.measurement else {}
    how = ", ".join(f"{key} {measured[key]}" for key in ("backend", "threads", "dtype", "layout") if key in measured)
    return [
        f"Measured on {e.device_model} ({how or e.device}) with torch {e.torch}, Python {e.python}, "
        f"ranksearch {e.ranksearch}, seed {contents.seed}. Brackets are 95 % intervals."
    ]


def _load_line(contents: Contents) -> str:
    if is_rebuildable(contents):
        return 'model = ranksearch.load("path/to/this/folder")'
    return 'model = ranksearch.load("path/to/this/folder", model=make_net())  # the dense model, trained or not'


def _use(contents: Contents) -> list[str]:
    shape = f"(N, {', '.join(map(str, contents.input_shape))})" if contents.input_shape else "as of the dense model"
    named = [f"{key} {contents.settings[key]}" for key in ("data", "normalize") if key in contents.settings]
    prepared = f" ({', '.join(named)})" if named else ""
    return [f"It is a torch.nn.Module in eval mode. Input: {shape}, prepared like the training data{prepared}."]


# --- back ------------------------------------------------------------------------------------------------------------


def load(directory: Path | str, model: nn.Module | None = None) -> nn.Module:
    """The model of an exported folder, in eval mode.

    model: the dense model it was made from, trained or not; it is left as it is. It may be left out where that was the
    built-in example or a torchvision model.
    Raises NotFoundError where there is no export, ModelError where it is damaged or `model` is another one.
    """
    folder = Path(directory)
    contents = read(folder)
    dense = rebuilt(contents) if model is None else model
    _check_layers(contents, dense)
    try:
        small = compress(dense, contents.plan, init="random")
    except SpaceError as error:
        raise ModelError(f"{folder} was made from another model: {error}") from error
    _fill(small, folder / WEIGHTS)
    return small.eval()


def read(folder: Path) -> Contents:
    """What plan.json says. Raises NotFoundError where there is no export, ModelError where it is damaged."""
    for name in (PLAN, WEIGHTS):
        if not (folder / name).is_file():
            raise NotFoundError(f"{str(folder)!r} is no export: it has no {name}; `ranksearch export` makes one")
    try:
        found = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if found["format"] > FORMAT:
            raise ModelError(f"{folder} was written by a newer ranksearch; upgrade: pip install --upgrade ranksearch")
        return Contents.from_json(found)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{folder / PLAN} cannot be read: {error}; export the trial again") from error


def is_rebuildable(contents: Contents) -> bool:
    model = contents.settings.get("model", "")
    return model == EXAMPLE or (
        model.startswith(TORCHVISION) and None not in (contents.input_shape, contents.num_outputs)
    )


def rebuilt(contents: Contents) -> nn.Module:
    """The dense model with random weights. Raises ModelError where only its maker can build it."""
    name = contents.settings.get("model", "")
    if name == EXAMPLE:
        return ExampleNet()
    if not is_rebuildable(contents) or contents.input_shape is None:
        raise ModelError(f"the dense model was {name or 'made in Python'} and cannot be rebuilt from that; pass model=")
    return torchvision_model(
        name.removeprefix(TORCHVISION),
        num_classes=contents.num_outputs,
        in_channels=contents.input_shape[0],
        pretrained=False,
    )


def _check_layers(contents: Contents, dense: nn.Module) -> None:
    found = {layer.name: f"{layer.kind} {layer.shape or ''}" for layer in list_layers(dense, contents.layers)}
    for name, shape in contents.layers.items():
        if found.get(name) != shape:
            raise ModelError(
                f"the model is another one: layer {name!r} is {found.get(name, 'missing')}, the export was made "
                f"from {shape}; pass the dense model that was compressed"
            )


def _fill(small: nn.Module, file: Path) -> None:
    try:
        small.load_state_dict(load_file(file))
    except SafetensorError as error:
        raise ModelError(f"{file} cannot be read as safetensors: {error}; export the trial again") from error
    except RuntimeError as error:
        first = str(error).strip().splitlines()[1:2]
        raise ModelError(f"{file} does not fit the model: {''.join(first).strip()}") from error
