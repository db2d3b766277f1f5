"""What every part measures with: the built-in example and nets made of it, on the CPU, batch 8, one thread."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import quantiles
from time import perf_counter
from typing import TypeVar

import torch
from torch import nn

from ranksearch import latency
from ranksearch.latency.selftest import Subject
from ranksearch.records import MeasureConfig, Measurement
from ranksearch.study.specimens import specimens
from ranksearch.tasks import Task
from ranksearch.workbench import Workbench

CPU = torch.device("cpu")
LIMIT_SECONDS = 600.0  # of a part; after these it begins nothing more, and what it lacks is a miss

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much of everything."""

    copies: int
    repeats: int
    nets: int
    rounds: int
    options: int  # of a layer, each alone in the net
    plans: int
    sampled: int
    trials: int
    images: int  # of the validation that a trial on ResNet-18 ends with


FULL = Counts(copies=200, repeats=8, nets=50, rounds=5, options=100, plans=40, sampled=30, trials=3, images=1000)
BESIDE = Counts(copies=30, repeats=3, nets=12, rounds=5, options=3, plans=8, sampled=0, trials=0, images=0)
QUICK = Counts(copies=4, repeats=2, nets=5, rounds=3, options=2, plans=4, sampled=4, trials=1, images=64)


@dataclass
class Bench:
    """One for a part. Keeps all that it measured."""

    task: Task
    counts: Counts
    made: list[Measurement] = field(default_factory=list)
    deadline: float = field(default_factory=lambda: perf_counter() + LIMIT_SECONDS)

    @cached_property
    def workbench(self) -> Workbench:
        return Workbench(self.task, CPU)

    @cached_property
    def subject(self) -> Subject:
        return specimens(self.task, num=self.counts.nets)

    @property
    def seconds_left(self) -> float:
        return self.deadline - perf_counter()

    def measure(self, model: nn.Module, config: MeasureConfig, seed: int) -> Measurement:
        config = latency.resolve(config, CPU)
        dense, inputs = self.workbench.measuring(config)
        prepared = latency.prepare(model, config, CPU)
        lock = self.workbench.lock
        found = latency.measure(dense, prepared, inputs, config, device=CPU, seed=seed, lock=lock)
        self.made.append(found)
        return found

    def until_late(self, work: Callable[[int], T], wanted: int) -> list[T]:
        """What `work` gives for 0, 1, …, as many times as wanted, or until the time is over; at least two, which is
        what a spread needs."""
        found: list[T] = []
        while len(found) < wanted and (self.seconds_left > 0 or len(found) < 2):
            found.append(work(len(found)))
        return found


def spread(values: list[float], digits: int = 2) -> str:
    """Their quartiles, as text."""
    low, _, high = quantiles(values, method="inclusive")
    return f"quartiles {low:.{digits}f} to {high:.{digits}f}"
