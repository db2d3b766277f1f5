"""Trials in the driver's own process, one after the other.

Isolates nothing: an exception or a non-finite value ends its trial alone, but a crash, a hang or memory exhaustion
takes the run with it (it then resumes by running the same command again).
"""

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from ranksearch.trial import run
from ranksearch.workbench import Workbench
from ranksearch.workers.executor import TrialSource, WorkerSetup, available_cores

__all__ = ["InlineExecutor"]

P = ParamSpec("P")
R = TypeVar("R")


class InlineExecutor:
    def __init__(self, setup: WorkerSetup, cores: int | None = None) -> None:
        self.cores = cores or available_cores()
        self._bench = setup.workbench()

    def call(self, function: Callable[Concatenate[Workbench, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        return function(self._bench, *args, **kwargs)

    def run(self, source: TrialSource) -> None:
        while (job := source.suggest()) is not None:
            result = run(job.spec, self._bench, job.measurement, job.bar, job.ancestors)
            if self._bench.outbox is not None:
                self._bench.outbox.put_result(result)
            source.complete(job, result)

    def close(self) -> None:
        pass
