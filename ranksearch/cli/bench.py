"""`bench`: trials, a whole front or an exported model measured again, and the measuring itself put to the test."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ranksearch.cli import figures
from ranksearch.cli.options import FormatOption, with_settings
from ranksearch.cli.output import Column, Format, Row, print_frame
from ranksearch.cli.queries import open_study
from ranksearch.errors import ConfigError, MeasurementError, SelfTestError
from ranksearch.records import MeasureConfig, Measurement, StudyRecord
from ranksearch.settings import Settings

if TYPE_CHECKING:
    import torch

    from ranksearch.bundle import Contents

__all__ = ["bench"]

TASK = {"model", "weights", "train", "data", "metric"}
Targets = Annotated[
    list[str] | None, typer.Argument(help="Trials by number, or one exported folder.", metavar="[TRIAL…|BUNDLE]")
]


@with_settings("model", "weights", "train", "data", "metric", "study", "storage", "device")
def bench(
    settings: Settings,
    targets: Targets = None,
    front: Annotated[bool, typer.Option("--front", help="The Pareto front and all within 3 % of it.")] = False,
    self_test: Annotated[bool, typer.Option("--self-test", help="Test the measuring itself, in ten minutes.")] = False,
    backend: Annotated[str | None, typer.Option("--backend", help="How models are run. As in the study.")] = None,
    batch_sizes: Annotated[str | None, typer.Option("--batch-sizes", help="One or more, as in 1,8,32.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads of a pass.")] = None,
    max_seconds: Annotated[float, typer.Option("--max-seconds", help="At most so long for each.")] = 15.0,
    form: FormatOption = Format.TABLE,
) -> None:
    """Measure trials again, each beside the dense model in a fresh process, and store what is found.

    Tables then show it where backend, batch size and threads are the study's own. An exported folder is measured on
    this machine, and nothing is stored.
    """
    given = {"backend": backend, "batch_sizes": _sizes(batch_sizes), "threads": threads, "max_seconds": max_seconds}
    if sum((bool(targets), front, self_test)) != 1:
        raise ConfigError("give trials or an exported folder, --front, or --self-test: one of them")
    if self_test:
        if backend or batch_sizes or threads:
            raise ConfigError("--self-test measures in one way; leave out --backend, --batch-sizes and --threads")
        _self_test(settings, form)
    elif targets and not all(target.isdecimal() for target in targets):
        _bench_bundle(settings, targets, given, form)
    else:
        _bench_trials(settings, targets, given, form)


def _sizes(text: str | None) -> list[int]:
    parts = text.split(",") if text is not None else []
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--batch-sizes is {text!r}; write numbers of at least 1, like 1,8,32")
    return [int(part) for part in parts]


def _device(settings: Settings, measured_on: str) -> "torch.device":
    """The one that was asked for, else where the latency was measured that this is to be set beside."""
    import torch

    name = measured_on if settings.device == "auto" else settings.device
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; it must be one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but there is no CUDA device here; --device cpu measures on the CPU")
    return torch.device(name)


# --- trials ----------------------------------------------------------------------------------------------------------


def _bench_trials(settings: Settings, targets: Sequence[str] | None, given: dict[str, Any], form: Format) -> None:
    from ranksearch.study.remeasure import front_and_near, measure_again, variants

    study = open_study(settings)
    record = study.record
    device = _device(settings, record.environment.device)
    configs = variants(record.measure, **given)
    numbers = [int(target) for target in targets] if targets else front_and_near(study)
    task = Settings.of_study(record, settings.model_dump(include=TASK, exclude_none=True)).task()
    found = measure_again(study, numbers, configs, task=task, device=device.type)
    rows = [{"trial": again.trial, **_row(again.searched, again.fresh, record)} for again in found]
    if not rows:
        raise MeasurementError("no trial could be measured; the reasons stand above")
    _print(rows, "trial", form)


def _row(before: Measurement | None, now: Measurement, study: StudyRecord | None = None) -> dict[str, Any]:
    """Figures of a new measurement beside those of an earlier one. `shown`: whether the study's tables show it."""
    agrees = None
    if before is not None and dict(before.identity) == dict(now.identity):
        agrees = now.ratio_low <= before.ratio_high and before.ratio_low <= now.ratio_high
    return {
        "backend": now.identity["backend"],
        "batch_size": now.batch_size,
        "threads": int(now.identity["threads"]),
        "earlier_latency_ratio": before and before.ratio,
        "earlier_latency_ratio_low": before and before.ratio_low,
        "earlier_latency_ratio_high": before and before.ratio_high,
        "latency_ratio": now.ratio,
        "latency_ratio_low": now.ratio_low,
        "latency_ratio_high": now.ratio_high,
        "speedup": 1 / now.ratio,
        "latency_ms": now.p50_ms,
        "dense_latency_ms": now.dense_p50_ms,
        "agrees": agrees,
        "shown": study.identity == dict(now.identity) if study else None,
        "flags": ",".join(now.flags),
        "seconds": now.seconds,
    }


def _print(rows: Sequence[Row], index: str, form: Format) -> None:
    import pandas as pd

    name = (Column(header=index, cell=lambda row: str(row[index]), justify="left" if index == "bundle" else "right"),)
    print_frame(pd.DataFrame(rows).set_index(index).convert_dtypes(), (*name, *COLUMNS), form)


def _earlier(row: Row) -> str:
    ratio = row["earlier_latency_ratio"]
    ends = {name: row[f"earlier_{name}"] for name in ("latency_ratio_low", "latency_ratio_high")}
    return figures.speedup({"speedup": ratio and 1 / ratio, **ends})


def _verdict(row: Row) -> str:
    return {True: "agrees", False: "differs", None: "measured otherwise"}[row["agrees"]]


COLUMNS = (
    Column(header="backend", cell=lambda row: row["backend"], justify="left", rank=2),
    Column(header="batch", cell=lambda row: str(row["batch_size"]), rank=1),
    Column(header="threads", cell=lambda row: str(row["threads"]), rank=2),
    Column(header="earlier", cell=_earlier),
    Column(header="now", cell=figures.speedup),
    Column(header="", cell=_verdict, justify="left", rank=1),
    Column(header="latency", cell=lambda row: figures.latency(row["latency_ms"]), rank=3),
    Column(header="dense", cell=lambda row: figures.latency(row["dense_latency_ms"]), rank=3),
    Column(header="noticed", cell=lambda row: row["flags"].replace(",", ", "), justify="left"),
)


# --- an exported model -----------------------------------------------------------------------------------------------


def _bench_bundle(settings: Settings, targets: Sequence[str], given: dict[str, Any], form: Format) -> None:
    import torch

    from ranksearch import bundle
    from ranksearch.latency import DeviceLock, check, lock_name, resolve
    from ranksearch.latency.fresh import measure_fresh
    from ranksearch.study.remeasure import variants

    if len(targets) > 1:
        raise ConfigError(f"got {' '.join(targets)!r}; give trials by number, or one exported folder")
    contents = bundle.read(Path(targets[0]))
    dense, example = _dense_of(settings.model, contents)
    small = bundle.load(targets[0], model=dense)
    here = "cuda" if torch.cuda.is_available() else "cpu"
    device = _device(settings, here)
    before = contents.measurement
    configs = [resolve(config, device) for config in variants(_config_of(before, device.type), **given)]
    for config in configs:
        check(config, device)
    lock = DeviceLock(lock_name(device))
    measured = [
        measure_fresh(dense, small, example, config, device=device, seed=contents.seed, lock=lock) for config in configs
    ]
    _print([{"bundle": targets[0], **_row(before, now)} for now in measured], "bundle", form)


def _dense_of(model: str | None, contents: "Contents") -> tuple[Any, Any]:
    """The dense model, its weights random where nothing else is said, and a batch of one."""
    import torch

    from ranksearch.bundle import is_rebuildable, rebuilt
    from ranksearch.tasks.models import model_of_factory
    from ranksearch.tasks.task import Task

    shape = contents.input_shape
    if is_rebuildable(contents):
        made = rebuilt(contents)
    elif model is None:
        name = contents.settings.get("model", "made in Python")
        raise ConfigError(f"the dense model was {name}, which an export does not hold; --model says how to build it")
    else:
        made = model_of_factory(model, num_classes=contents.num_outputs, in_channels=shape[0] if shape else None)
    if isinstance(made, Task):
        return made.model.eval(), made.example_input
    if shape is None:
        raise ConfigError(
            "the export does not say what goes into the model; --model must name a function that gives a Task"
        )
    return made.eval(), torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def _config_of(measured: Measurement | None, device: str) -> MeasureConfig:
    """As the export was measured; on another kind of device, as a study there would."""
    if measured is None or measured.identity.get("device") != device:
        return MeasureConfig()
    of = measured.identity
    return MeasureConfig(
        backend=of["backend"],
        batch_size=measured.batch_size,
        threads=int(of["threads"]),
        dtype=of["dtype"],
        layout=of["layout"],
        fold_batchnorm=of.get("fold_batchnorm") == "true",
    )


# --- the measuring itself --------------------------------------------------------------------------------------------


def _self_test(settings: Settings, form: Format) -> None:
    import pandas as pd
    import torch

    from ranksearch.latency import DeviceLock, lock_name
    from ranksearch.latency.selftest import self_test
    from ranksearch.study.specimens import specimens
    from ranksearch.tasks import build_task

    device = _device(settings, "cuda" if torch.cuda.is_available() else "cpu")
    subject = specimens(build_task())
    checks = list(self_test(subject, device=device, lock=DeviceLock(lock_name(device))))
    rows = [{**asdict(check), "passed": check.passed} for check in checks]
    print_frame(pd.DataFrame(rows).set_index("test"), CHECK_COLUMNS, form)
    if missed := [check.test for check in checks if not check.passed]:
        raise SelfTestError(f"{len(missed)} of {len(checks)} tests missed: {'; '.join(missed)}; is the machine quiet?")


def _target(row: Row) -> str:
    bounds = ((">=", row["at_least"]), ("<=", row["at_most"]))
    return ", ".join(f"{sign} {bound:g}" for sign, bound in bounds if figures.is_known(bound))


CHECK_COLUMNS = (
    Column(header="test", cell=lambda row: row["test"], justify="left"),
    Column(header="value", cell=lambda row: f"{row['value']:.4f}" if figures.is_known(row["value"]) else figures.NONE),
    Column(header="target", cell=_target, justify="left"),
    Column(header="", cell=lambda row: "ok" if row["passed"] else "MISSED", justify="left"),
    Column(header="runs", cell=lambda row: f"{row['num_done']} of {row['num_wanted']}", rank=1),
    Column(header="seconds", cell=lambda row: f"{row['seconds']:.0f}", rank=2),
    Column(header="beside", cell=lambda row: row["note"], justify="left", rank=1),
)
