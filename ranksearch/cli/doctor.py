"""`doctor`: what this machine is, and what could become of a model's layers."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ranksearch.cli import figures
from ranksearch.cli.options import FormatOption, with_settings
from ranksearch.cli.output import Column, Format, Row, print_rows
from ranksearch.errors import ConfigError, NotFoundError
from ranksearch.settings import Settings

__all__ = ["doctor"]

LIBRARIES = ("torch", "torchvision", "ray", "optuna", "sqlalchemy", "pandas")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps it, and Ray its objects


@with_settings("model", "weights", "data", "metric", "normalize", "seed", "storage")
def doctor(settings: Settings, form: FormatOption = Format.TABLE) -> None:
    """Look at this machine, and with --model at every layer: its shape, its cost, the methods that take it."""
    if form is Format.CSV:
        raise ConfigError("--format is 'csv'; doctor prints a table or json")
    machine = _machine(settings)
    layers = _layers(settings) if settings.model else None
    if form is Format.JSON:
        sys.stdout.write(json.dumps({"machine": machine, "layers": layers}, indent=2, ensure_ascii=False) + "\n")
        return
    for name, value in machine.items():
        print(f"{name:<15}{value}")
    if layers is not None:
        print()
        print_rows(layers, LAYER_COLUMNS, Format.TABLE)
        for line in _why_not(layers):
            print(line)


def _verdict(layer: Row) -> str:
    return ", ".join(layer["methods"]) or f"stays dense: {layer['skipped']}"


LAYER_COLUMNS = (
    Column(header="layer", cell=lambda row: row["layer"], justify="left"),
    Column(header="shape", cell=lambda row: row["shape"] or row["kind"], justify="left"),
    Column(header="parameters", cell=lambda row: figures.parameters(row["parameters"]), rank=2),
    Column(header="MACs", cell=lambda row: figures.macs(row["macs"]), rank=1),
    Column(header="methods", cell=_verdict, justify="left", wrap=True),
)


def _machine(settings: Settings) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from ranksearch import __version__
    from ranksearch.latency.identity import device_model
    from ranksearch.workers.executor import available_cores

    found = {"ranksearch": __version__, "Python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    found["CPU"] = f"{device_model(torch.device('cpu'))}; {available_cores()} of {os.cpu_count()} cores usable"
    found["CUDA"] = _cuda()
    found["threads"] = (
        f"torch {torch.get_num_threads()}, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}"
    )
    found["shared memory"] = _shared_memory()
    found["database"] = _database(settings.storage_url)
    return found


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"no device (torch was built for {'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPUs only'})"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _shared_memory() -> str:
    if not SHARED_MEMORY.is_dir():
        return "none"
    usage = shutil.disk_usage(SHARED_MEMORY)
    small = "; Ray then works on disk" if usage.total < 2**28 else ""
    return f"{figures.size(usage.free)} of {figures.size(usage.total)} free{small}"


def _database(url: str) -> str:
    """Raises StorageError or ConfigError where it cannot be used."""
    from ranksearch.database import Database, safe_url
    from ranksearch.settings import check_writable

    try:
        with Database.open(url, create=False) as database:
            return f"{safe_url(url)}, {len(database.studies_frame())} studies"
    except NotFoundError:
        check_writable(url)
        return f"{safe_url(url)} is not there yet; a run makes it"


def _layers(settings: Settings) -> list[dict[str, Any]]:
    from ranksearch.factorize import METHODS
    from ranksearch.layers import find_layers

    task = settings.task()
    rows = []
    for layer in find_layers(task.model, task.example_input):
        refusals = {n: m.refuses(layer.shape) for n, m in METHODS.items()} if layer.shape else {}
        takers = [] if layer.skipped else [name for name, reason in refusals.items() if reason is None]
        cost = layer.shape.cost() if layer.shape else None
        rows.append(
            {
                "layer": layer.name,
                "kind": layer.kind,
                "shape": str(layer.shape or ""),
                "parameters": cost.parameters if cost else None,
                "macs": cost.macs if cost else None,
                "methods": takers,
                "refused": {name: reason for name, reason in refusals.items() if reason and takers},
                "skipped": layer.skipped or (None if takers else _together(refusals)),
            }
        )
    return rows


def _why_not(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One line for each reason why methods do not take layers that others take."""
    layers: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for method, reason in row["refused"].items():
            layers.setdefault((method, reason.partition("; use ")[0]), []).append(row["layer"])
    methods: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (method, reason), names in layers.items():
        methods.setdefault((reason, tuple(names)), []).append(method)
    for (reason, (first, *others)), refusing in methods.items():
        more = f" and {len(others)} more" if others else ""
        yield f"{', '.join(refusing)} not for {first}{more}: {reason}"


def _together(refusals: Mapping[str, str | None]) -> str:
    """The reasons of methods none of which takes the layer, without the advice to use another one."""
    methods: dict[str, list[str]] = {}
    for name, reason in refusals.items():
        methods.setdefault((reason or "").partition("; use ")[0], []).append(name)
    return "; ".join(f"{reason} ({', '.join(names)})" for reason, names in methods.items())
