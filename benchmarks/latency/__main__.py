"""How far latencies can be trusted: `python -m benchmarks.latency [--parts self-test,cost] [--quick]`.

Writes benchmarks/results/latency.json and a section of docs/latency.md, after every part; --parts measures some anew
and leaves the others as they are. All of it takes some 25 minutes on two cores, and needs the machine for itself.
--quick tries every part with small counts: it prints the section and keeps nothing.
"""

import argparse
import logging
from datetime import UTC, datetime
from importlib.metadata import version
from time import perf_counter

from benchmarks.latency import page
from benchmarks.latency.bench import BESIDE, FULL, QUICK, Bench
from benchmarks.latency.parts import PARTS
from benchmarks.latency.report import Finding, Report
from benchmarks.machine import conditions
from ranksearch.tasks import Task, build_task

log = logging.getLogger("benchmarks.latency")


def found(name: str, task: Task, *, quick: bool) -> Finding:
    counts = QUICK if quick else BESIDE if name == "training" else FULL
    log.info("%s", PARTS[name].title)
    load_before, date, start = conditions()["load_before"], datetime.now(UTC), perf_counter()
    bench = Bench(task, counts)
    checks = PARTS[name].run(bench)
    seconds = perf_counter() - start
    log.info("%s: %.0f seconds", PARTS[name].title, seconds)
    return Finding(
        date=date.isoformat(),
        seconds=seconds,
        load_before=load_before,
        num_runs=len(bench.made),
        num_contended=sum("contended" in run.flags for run in bench.made),
        checks=tuple(checks),
    )


def parts_of(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=parts_of, default=list(PARTS), help=",".join(PARTS))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    versions = {name: version(name) for name in ("ranksearch", "torch", "onnxruntime")}
    where = {name: conditions()[name] for name in ("device", "cores", "python")} | {"versions": versions}
    report = Report(where) if given.quick else Report.resumed(where)
    task = build_task()
    for name in given.parts:
        report.found[name] = found(name, task, quick=given.quick)
        if not given.quick:
            report.save()
            page.put(report)
    print(page.section(report))


if __name__ == "__main__":
    main()
