"""What a study asks of whatever runs its trials, and what that asks of the study."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch

from ranksearch.errors import ConfigError
from ranksearch.outbox import Outbox
from ranksearch.records import Bar, Measurement, TrialResult, TrialSpec, TrialState
from ranksearch.tasks import Task
from ranksearch.workbench import Workbench

__all__ = ["ClusterConfig", "Executor", "Job", "TrialSource", "WorkerSetup", "available_cores", "left_behind"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Job:
    number: int
    spec: TrialSpec
    measurement: Measurement | None = None  # of the same plan, known already: a worker does not measure it again
    bar: Bar | None = None  # what the trial has to pass to be trained to its end
    ancestors: tuple[TrialSpec, ...] = ()  # the trials whose models it goes on from, the first of them first


class TrialSource(Protocol):
    """Where jobs come from and results go. Called from one thread of the driver."""

    def suggest(self) -> Job | None:
        """The next job; None when there is none now."""
        ...

    @property
    def exhausted(self) -> bool:
        """True when no further job will come, whatever becomes of those still running."""
        ...

    def complete(self, job: Job, result: TrialResult) -> None: ...


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker process needs to make its workbench."""

    task: Task
    device: str  # cpu | cuda
    files: Path | None
    trial_timeout_seconds: float | None = None

    def outbox(self) -> Outbox | None:
        return Outbox(self.files) if self.files is not None else None

    def workbench(self) -> Workbench:
        """Raises ConfigError where this process has no such device."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "device is cuda, but this process sees no CUDA device; use --device cpu or --gpus-per-trial 1"
            )
        return Workbench(self.task, torch.device(self.device), outbox=self.outbox())


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """Where trials run and what one may use. None: decided from what the cluster has."""

    address: str | None = None  # None: a private cluster on this machine; "auto" or host:port: one that runs already
    gpus_per_trial: float | None = None
    cpus_per_trial: int | None = None
    max_concurrent: int | None = None


class Executor(Protocol):
    """Runs functions and trials on workers of the study's device class."""

    cores: int  # that one trial may use

    def call(self, function: Callable[Concatenate[Workbench, P], R], *args: P.args, **kwargs: P.kwargs) -> R: ...

    def run(self, source: TrialSource) -> None:
        """Run jobs until the source is exhausted and all its jobs are complete."""
        ...

    def close(self) -> None: ...


def left_behind(outbox: Outbox | None, key: str, reason: str) -> TrialResult:
    """What a lost worker left: its result, or else a failure for that reason, with what it had found by then."""
    left = outbox.result(key) if outbox is not None else None
    if left is not None and left.state is not TrialState.RUNNING:
        return left
    found = left or TrialResult(key=key, state=TrialState.FAILED)
    return replace(found, state=TrialState.FAILED, reason=reason, retryable=True)


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
