"""What was found on one net, as it is kept: results/search/NET.json. All figures are made of it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import RESULTS
from benchmarks.search.race import Run
from ranksearch.records import MeasureConfig, Recipe, Record

__all__ = ["Found", "Front", "load", "save"]

FOLDER = RESULTS / "search"


@dataclass(frozen=True, kw_only=True, slots=True)
class Front(Record):
    """The trials that nothing beats of one searcher and seed; `seed` None: of all rules and seeds. `fresh`: ratios
    measured again in fresh processes, where that was done."""

    searcher: str
    seed: int | None
    ratios: tuple[float, ...]
    accuracies: tuple[float, ...]
    test_accuracies: tuple[float, ...]
    fresh: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Found(Record):
    """`dense`: accuracy of the dense model by split. `again`: where a peer was ahead at equal trials, its runs and ours
    until its lead was largest, with latencies measured again in fresh processes."""

    title: str
    date: str  # ISO 8601, UTC
    minutes: float  # that this took, less what was kept
    num_kept: int  # trials that were evaluated before
    conditions: Mapping[str, Any]
    num_validation: int
    num_test: int
    parameters: int
    macs: int
    num_layers: int  # with options
    num_options: int
    num_our_options: int
    recipes: tuple[Recipe, ...]
    measure: MeasureConfig
    dense: Mapping[str, float]
    profile_seconds: float
    budget: int
    long_budget: int
    runs: tuple[Run, ...]
    fronts: tuple[Front, ...] = ()
    again: tuple[Run, ...] = ()
    is_unseen: bool = False

    def of(self, searcher: str) -> list[Run]:
        return [run for run in self.runs if run.searcher == searcher]

    @property
    def searchers(self) -> list[str]:
        return list(dict.fromkeys(run.searcher for run in self.runs))


def save(name: str, found: Found, figures: Mapping[str, Any]) -> None:
    """`figures`: what the page says, beside what it is made of."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(_text({**figures, "found": found.to_json()}) + "\n")


def load(name: str) -> Found | None:
    file = FOLDER / f"{name}.json"
    return Found.from_json(json.loads(file.read_text())["found"]) if file.exists() else None


def _text(data: Mapping[str, Any]) -> str:
    """JSON with a list of numbers in one line."""
    return re.sub(r"\[[-+.\de,\s]+\]", lambda numbers: " ".join(numbers[0].split()), json.dumps(data, indent=1))
