"""The report as a section of docs/latency.md, between two comments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.latency.parts import PARTS
from benchmarks.latency.report import Finding, Report
from ranksearch.latency.selftest import Check

PAGE = Path(__file__).parents[2] / "docs" / "latency.md"
BEGIN = "<!-- from here to the end mark: written by `python -m benchmarks.latency`; do not edit -->"
END = "<!-- end of what `python -m benchmarks.latency` writes -->"


def put(report: Report) -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{section(report)}\n{END}{after}", encoding="utf-8")


def section(report: Report) -> str:
    alone = {check.test: check for name, found in report.found.items() if name != "training" for check in found.checks}
    parts = [
        part(name, report.found[name], alone if name == "training" else {}) for name in PARTS if name in report.found
    ]
    return "\n".join(["## How far to trust it", "", conditions(report.where), "", *parts])


def conditions(where: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return (
        "Found by `python -m benchmarks.latency` on the built-in example's net, batch 8, one thread, seed 0: "
        f"{where['device']}, {where['cores']} cores, Python {where['python']}, {versions}. "
        "Shares and ratios are plain numbers (0.02 is 2 %); n is the number of runs, nets or plans."
    )


def part(name: str, found: Finding, alone: Mapping[str, Check]) -> str:
    header = ["test", "found", *(["alone"] if alone else []), "target", "", "n", "beside it"]
    return "\n".join(
        [
            f"### {PARTS[name].title}",
            "",
            PARTS[name].text,
            "",
            f"{found.date[:10]}, {found.seconds / 60:.1f} minutes, load before {found.load_before:.1f}; "
            f"{found.num_contended} of its {found.num_runs} runs were contended.",
            "",
            line(header),
            "|" + "---|" * len(header),
            *(line(cells(check, alone)) for check in found.checks),
            "",
        ]
    )


def line(texts: list[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def cells(check: Check, alone: Mapping[str, Check]) -> list[str]:
    without = [value(alone[check.test]) if check.test in alone else ""] if alone else []
    return [check.test, value(check), *without, target(check), verdict(check), number(check), check.note]


def value(check: Check) -> str:
    return "" if check.value is None else f"{check.value:.3f}"


def target(check: Check) -> str:
    bounds = (("≥", check.at_least), ("≤", check.at_most))
    return ", ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


def verdict(check: Check) -> str:
    if not target(check) and check.num_done == check.num_wanted:
        return ""
    return "ok" if check.passed else "**missed**"


def number(check: Check) -> str:
    return f"{check.num_done}" if check.num_done == check.num_wanted else f"{check.num_done} of {check.num_wanted}"
