"""A stored study, to query and to take models from."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from ranksearch.database import Database
from ranksearch.database.url import read_url, sqlite_file
from ranksearch.errors import ModelError, NotFoundError
from ranksearch.outbox import Outbox
from ranksearch.records import StudyRecord, TrialRecord, TrialSpec, TrialState, nearest
from ranksearch.tasks import Task
from ranksearch.trial import restored
from ranksearch.workbench import Workbench

__all__ = ["DEFAULT_STORAGE", "ParetoFilter", "Study", "files_folder"]

DEFAULT_STORAGE = "sqlite:///ranksearch.db"


@dataclass(frozen=True, kw_only=True, slots=True)
class ParetoFilter:
    """Which rows of a front to keep. `max_drop` is in the metric's units below the dense model: 0.01 is one point."""

    max_latency_ms: float | None = None
    min_speedup: float | None = None
    min_accuracy: float | None = None
    max_drop: float | None = None

    def apply(self, frame: pd.DataFrame, dense_accuracy: float | None) -> pd.DataFrame:
        keep = pd.Series(data=True, index=frame.index)
        if self.max_latency_ms is not None:
            keep &= frame.latency_ms <= self.max_latency_ms
        if self.min_speedup is not None:
            keep &= frame.speedup >= self.min_speedup
        if self.min_accuracy is not None:
            keep &= frame.accuracy >= self.min_accuracy
        if self.max_drop is not None and dense_accuracy is not None:
            keep &= frame.accuracy >= dense_accuracy - self.max_drop
        return frame.loc[keep]


def files_folder(storage: str, study: str) -> Path:
    """Where a study's workers leave results and weights: beside a SQLite database, else in the working directory."""
    database = sqlite_file(read_url(storage))
    return (database.with_suffix(".files") if database else Path("ranksearch.files").absolute()) / study


@dataclass(frozen=True, slots=True)
class Study:
    """A handle to a stored study; it holds no connection. Made by `open` or by a search."""

    name: str
    storage: str = field(repr=False)  # may hold a password
    task: Task | None = field(default=None, repr=False)

    @classmethod
    def open(cls, name: str | None = None, storage: str = DEFAULT_STORAGE, *, task: Task | None = None) -> "Study":
        """The study of that name; without one, the only or the newest. Raises NotFoundError."""
        with Database.open(storage, create=False) as database:
            names = list(database.studies_frame()["study"])
        if not names:
            raise NotFoundError("the database holds no study; `ranksearch run` makes one")
        if name is not None and name not in names:
            raise NotFoundError(f"no study {name!r}{nearest(name, names)}; the database has {', '.join(names)}")
        return cls(name or names[-1], storage, task)

    @property
    def record(self) -> StudyRecord:
        with Database.open(self.storage, create=False) as database:
            record = database.load_study(self.name)
        if record is None:
            raise NotFoundError(f"study {self.name!r} is no longer in the database")
        return record

    def trials(self, *, all_rows: bool = False) -> pd.DataFrame:
        """One row a logical trial, indexed by its number; with `all_rows` also failures that a retry superseded."""
        with Database.open(self.storage, create=False) as database:
            return database.trials_frame(self.name, all_rows=all_rows)

    def pareto(
        self,
        *,
        max_latency_ms: float | None = None,
        min_speedup: float | None = None,
        min_accuracy: float | None = None,
        max_drop: float | None = None,
    ) -> pd.DataFrame:
        """The Pareto front, fastest first, indexed by trial. Filters as in `ParetoFilter`."""
        wanted = ParetoFilter(
            max_latency_ms=max_latency_ms, min_speedup=min_speedup, min_accuracy=min_accuracy, max_drop=max_drop
        )
        with Database.open(self.storage, create=False) as database:
            front = database.pareto_frame(self.name)
            dense = self._dense_accuracy(database)
        return wanted.apply(front, dense).sort_values(["latency_ratio", "accuracy"], ascending=[True, False])

    def _dense_accuracy(self, database: Database) -> float | None:
        trials = database.trials_frame(self.name)
        dense = trials[(trials.origin == "dense") & (trials.state == TrialState.COMPLETE)]
        return None if dense.empty else float(dense.accuracy.iloc[0])

    def trial(self, number: int) -> TrialRecord:
        """Raises NotFoundError."""
        with Database.open(self.storage, create=False) as database:
            return database.trial(self.name, number)

    def load(self, trial: int, *, task: Task | None = None, device: str = "cpu") -> nn.Module:
        """The trained model of a complete trial, in eval mode.

        Its weights come from the study's files, or are made again by repeating the trial's short training. Raises
        ModelError where no task was given and the study was not opened by a search, or where the task is another one.
        """
        record, task = self.trial(trial), task or self.task
        if record.state is not TrialState.COMPLETE:
            raise ModelError(f"trial {trial} is {record.state}; only a complete trial has a model")
        if task is None:
            raise ModelError("a study read from a database does not hold the model and data; give task=")
        self.check_task(task)
        bench = Workbench(task, torch.device(device), outbox=Outbox(files_folder(self.storage, self.name)))
        return restored(bench, self.lineage(trial))

    def lineage(self, trial: int) -> list[TrialSpec]:
        """The specs of a trial and of those whose models it goes on from, its own last. Raises NotFoundError."""
        with Database.open(self.storage, create=False) as database:
            return database.lineage(self.name, trial)

    def check_task(self, task: Task) -> None:
        stored, given = self.record.fingerprint, task.fingerprint()
        for part in ("model", "weights"):
            if stored[part] != given[part]:
                was, got = stored[part][:12], given[part][:12]
                raise ModelError(f"the study was made with another model: its {part} hash is {was}, this one's {got}")
