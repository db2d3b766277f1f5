"""What a run shows on stderr while it runs: one live view on a terminal, one line a trial elsewhere."""

import math
import sys
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import Protocol

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ranksearch.cli import figures
from ranksearch.cli.output import notes_console
from ranksearch.cli.signals import listen
from ranksearch.records import StudyRecord, TrialRecord, TrialState
from ranksearch.study.source import may_retry
from ranksearch.study.summary import doubts, fastest_within

__all__ = ["Lines", "LiveView", "View", "make_view"]

RATE_SECONDS = 3600.0  # the remaining time is told from the pace of the last hour


class View(Protocol):
    """A `Listener` that is shown while it is entered."""

    def shown(self) -> AbstractContextManager[object]: ...
    def on_stage(self, text: str) -> None: ...
    def on_start(self, study: StudyRecord, trials: list[TrialRecord], budget: int) -> None: ...
    def on_trial(self, trial: TrialRecord) -> None: ...


def make_view(chance: float | None) -> View:
    """`chance`: the accuracy of guessing, which the dense model has to beat."""
    return LiveView(chance) if sys.stderr.isatty() else Lines(chance)


class Tally:
    """What is known of a study's trials, told one after the other."""

    def __init__(self, study: StudyRecord, trials: list[TrialRecord], budget: int) -> None:
        self.study, self.budget = study, budget
        self.heading = _heading(
            study, sum(not may_retry(t) for t in trials if t.state is not TrialState.RUNNING), budget
        )
        self.percent = study.fingerprint.get("metric") == "accuracy"
        self._trials = {trial.number: trial for trial in trials}
        self._start, self._finished_before = monotonic(), self.num_finished

    def add(self, trial: TrialRecord) -> None:
        self._trials[trial.number] = trial

    def count(self, state: TrialState) -> int:
        """Of logical trials: a failure that is repeated is none."""
        return sum(trial.state is state and not may_retry(trial) for trial in self._trials.values())

    @property
    def num_finished(self) -> int:
        return sum(self.count(state) for state in TrialState if state is not TrialState.RUNNING)

    @property
    def seconds_left(self) -> float:
        done = self.num_finished - self._finished_before
        return (monotonic() - self._start) / done * (self.budget - self.num_finished) if done else math.nan

    @property
    def last_failure(self) -> TrialRecord | None:
        failed = [t for t in self._trials.values() if t.state is TrialState.FAILED and not may_retry(t)]
        return max(failed, key=lambda trial: trial.finished or "", default=None)

    def frame(self) -> pd.DataFrame:
        """The columns of a trials frame that summaries need, without test accuracy."""
        rows = {number: _row(trial) for number, trial in self._trials.items() if not may_retry(trial)}
        return pd.DataFrame.from_dict(rows, orient="index", columns=[*_COLUMNS])

    def doubts(self, chance: float | None) -> list[str]:
        return doubts(self.frame(), self.study.fingerprint.get("metric", ""), chance=chance)


_COLUMNS = (
    *("origin", "state", "accuracy", "accuracy_low", "accuracy_high"),
    *("test_accuracy", "test_accuracy_high"),
    *("latency_ms", "latency_ratio", "latency_ratio_low", "latency_ratio_high", "speedup", "parameters", "plan"),
)


def _row(trial: TrialRecord) -> dict[str, object]:
    row: dict[str, object] = {"origin": trial.origin, "state": trial.state, "plan": trial.spec.plan.to_json()}
    row |= {"test_accuracy": math.nan, "test_accuracy_high": math.nan}
    if (result := trial.result) is None:
        return row
    if score := result.score:
        row |= {"accuracy": score.value, "accuracy_low": score.low, "accuracy_high": score.high}
    if measured := result.measurement:
        row |= {"latency_ratio": measured.ratio, "speedup": 1 / measured.ratio, "latency_ms": measured.p50_ms}
        row |= {"latency_ratio_low": measured.ratio_low, "latency_ratio_high": measured.ratio_high}
    return row | {"parameters": result.parameters}


# --- one line a trial ------------------------------------------------------------------------------------------------


class Lines:
    def __init__(self, chance: float | None) -> None:
        self._chance = chance
        self._tally: Tally | None = None

    def shown(self) -> AbstractContextManager[object]:
        return nullcontext()

    def on_stage(self, text: str) -> None:
        listen()
        self._print(f"{text} …")

    def on_start(self, study: StudyRecord, trials: list[TrialRecord], budget: int) -> None:
        self._tally = Tally(study, trials, budget)
        self._print(self._tally.heading)

    def on_trial(self, trial: TrialRecord) -> None:
        tally = self._tally
        assert tally is not None
        tally.add(trial)
        if trial.state is TrialState.RUNNING:
            return
        left = "" if tally.num_finished >= tally.budget else f"  {figures.duration(tally.seconds_left)} left"
        self._print(
            f"{tally.num_finished:>{len(str(tally.budget))}}/{tally.budget}  {_line(trial, tally.percent)}{left}"
        )
        if trial.origin == "dense":
            for doubt in tally.doubts(self._chance):
                self._print(f"warning: {doubt}")

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _heading(study: StudyRecord, done: int, budget: int) -> str:
    resumed = f", {done} of {budget} trials are there already" if done else f", {budget} trials"
    searched = sum(bool(layer.options) for layer in study.layers)
    return (
        f"study {study.name} on {figures.device(study.environment.device_model)}: {searched} layers to search{resumed}"
    )


def _line(trial: TrialRecord, percent: bool) -> str:
    result = trial.result
    what = f"trial {trial.number:<3} {trial.state}"
    if trial.state is TrialState.FAILED or result is None:
        again = "; it is repeated" if may_retry(trial) else ""
        return f"{what}: {result.reason if result else 'unknown'}{again}"
    if trial.state is TrialState.PRUNED:
        return f"{what}  {result.reason}"
    row = _row(trial)
    cells = (
        figures.accuracy_of(row, percent=percent),
        figures.speedup(row),
        figures.parameters(result.parameters),
        figures.methods(trial.spec.plan.to_json()),
        trial.origin,
        figures.duration(sum(result.seconds.values())),
    )
    return f"{what}  {'  '.join(cells)}"


# --- the live view ---------------------------------------------------------------------------------------------------


class LiveView:
    def __init__(self, chance: float | None) -> None:
        self._chance = chance
        self._tally: Tally | None = None
        self._stage: RenderableType = Text("")
        self._body: RenderableType = Text("")
        self._progress = _progress_bar(notes_console())

    def shown(self) -> AbstractContextManager[object]:
        console = self._progress.console
        return Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def _render(self) -> RenderableType:
        return Group(self._body, self._stage)

    def on_stage(self, text: str) -> None:
        listen()
        self._stage = Spinner("dots", text)

    def on_start(self, study: StudyRecord, trials: list[TrialRecord], budget: int) -> None:
        self._tally = Tally(study, trials, budget)
        self._stage = Text("")
        self._task = self._progress.add_task("", total=budget, completed=self._tally.num_finished)
        self._redraw()

    def on_trial(self, trial: TrialRecord) -> None:
        tally = self._tally
        assert tally is not None
        tally.add(trial)
        if trial.origin == "dense":
            for doubt in tally.doubts(self._chance):
                self._progress.console.print(f"warning: {doubt}", style="yellow")
        self._redraw()

    def _redraw(self) -> None:
        """Made anew here, in the driver's thread, for the refreshing thread to show."""
        tally = self._tally
        assert tally is not None
        self._progress.update(self._task, completed=tally.num_finished)
        self._body = Group(Text(tally.heading, style="bold"), self._progress, _counts(tally), *_best(tally))


def _progress_bar(console: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("trials"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=RATE_SECONDS,
        expand=True,
    )


STYLES = {
    TrialState.COMPLETE: "green",
    TrialState.PRUNED: "yellow",
    TrialState.FAILED: "red",
    TrialState.RUNNING: "cyan",
}


def _counts(tally: Tally) -> Text:
    text = Text()
    for state, style in STYLES.items():
        count = tally.count(state)
        text.append(f"{count} {state}   ", style=style if count else "dim")
    if failure := tally.last_failure:
        reason = failure.result.reason if failure.result else None
        text.append(f"\nlast failure: trial {failure.number}: {reason}", style="red")
    return text


def _best(tally: Tally) -> list[RenderableType]:
    """The fastest trial at each loss of accuracy."""
    frame = tally.frame()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for header in ("fastest within", "trial", "speed-up", "accuracy", "methods"):
        table.add_column(header, no_wrap=header != "methods", overflow="fold")
    for drop, number in fastest_within(frame).items():
        row = frame.loc[number].to_dict()
        cells = (figures.speedup(row), figures.accuracy_of(row, percent=tally.percent), figures.methods(row["plan"]))
        table.add_row(figures.drop(drop, percent=tally.percent), str(number), *cells)
    return [table] if table.row_count else []
