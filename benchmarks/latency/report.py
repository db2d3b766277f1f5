"""The report: what each part found, and when. Kept as JSON after every part, so that a killed run loses only one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from benchmarks.machine import RESULTS, keep
from ranksearch.latency.selftest import Check
from ranksearch.records import Record

NAME = "latency"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding(Record):
    date: str  # ISO 8601, UTC
    seconds: float
    load_before: float
    num_runs: int  # measured by the part itself
    num_contended: int
    checks: tuple[Check, ...]


@dataclass
class Report:
    """All its parts are of one machine and the same versions: those of `where`."""

    where: Mapping[str, Any]
    found: dict[str, Finding] = field(default_factory=dict)  # part -> what it found

    @classmethod
    def resumed(cls, where: Mapping[str, Any]) -> Self:
        """With the parts that were found here before."""
        file = RESULTS / f"{NAME}.json"
        kept = json.loads(file.read_text()) if file.exists() else {}
        if any(kept.get(name) != value for name, value in where.items()):
            return cls(where)
        return cls(where, {name: Finding.from_json(found) for name, found in kept["parts"].items()})

    def save(self) -> None:
        missed = [check.test for found in self.found.values() for check in found.checks if not check.passed]
        parts = {name: found.to_json() for name, found in self.found.items()}
        keep(NAME, {**self.where, "missed": missed, "parts": parts})
