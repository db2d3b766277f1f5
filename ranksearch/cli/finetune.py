"""`finetune TRIAL`: a trial's model trained for longer."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ranksearch.cli.options import FormatOption, with_settings, with_table
from ranksearch.cli.output import Format, notes_console, print_frame
from ranksearch.cli.queries import open_study, trial_columns
from ranksearch.settings import Settings

__all__ = ["finetune"]

LINES = 10  # where nobody watches a bar


@with_settings("model", "weights", "train", "data", "metric", "study", "storage", "device")
@with_table("finetune")
def finetune(
    settings: Settings,
    trial: Annotated[int, typer.Argument(help="The trial's number.", min=0, metavar="TRIAL")],
    finetune: dict[str, Any],
    form: FormatOption = Format.TABLE,
) -> None:
    """Train a trial's model for longer, by --epochs, --steps or --seconds. The result is a trial of its own.

    It trains as the trial did, but for what is said here. The same command again resumes it.
    """
    import torch

    from ranksearch.study.continuation import continue_training, longer

    study = open_study(settings)
    config = longer(study.trial(trial), finetune)
    given = settings.model_dump(include={"model", "weights", "train", "data", "metric"}, exclude_none=True)
    task = Settings.of_study(study.record, given).task()
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with _progress(f"training trial {trial} on") as on_step:
        child = continue_training(study, trial, config, task=task, device=device, on_step=on_step, on_wait=_note)
    if child.result and child.result.reason:
        _note(f"warning: {child.result.reason}")
    frame = study.trials()
    print_frame(frame.loc[[trial, child.number]], trial_columns(study.record), form)
    where = "" if settings.study is None else f" --study {study.name}"
    _note("")
    _note(f"next     ranksearch export {child.number} --output trial-{child.number}{where}")


@contextmanager
def _progress(what: str) -> Iterator[Callable[[float, float], None]]:
    """A bar where somebody looks, else a line for every tenth."""
    if not sys.stderr.isatty():
        yield _lines(what)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("loss {task.fields[loss]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=notes_console()) as bar:
        shown = bar.add_task(what, total=1.0, loss="–")
        yield lambda done, loss: bar.update(shown, completed=done, loss=f"{loss:.3f}")


def _lines(what: str) -> Callable[[float, float], None]:
    told = 0

    def on_step(done: float, loss: float) -> None:
        nonlocal told
        if (tenth := int(done * LINES)) > told:
            told = tenth
            _note(f"{what}: {100 * done:.0f} %, loss {loss:.3f}")

    return on_step


def _note(text: str) -> None:
    print(text, file=sys.stderr)
