"""What `ranksearch bench --self-test` checks, with what identical copies measure kept run by run."""

import copy
import logging
from statistics import median
from time import perf_counter

from benchmarks.latency.bench import CPU, Bench, spread
from ranksearch.latency.selftest import (
    MAX_FALSE_ALARMS,
    MIN_COVERAGE,
    SHORT,
    Check,
    coverage,
    false_alarms,
    self_test,
)
from ranksearch.records import Measurement

log = logging.getLogger(__name__)

SHARE = 2 / 3  # of a part's time that the self-test may take; the copies' comes after


def selfchecks(bench: Bench) -> list[Check]:
    others = self_test(
        bench.subject,
        device=CPU,
        lock=bench.workbench.lock,
        limit_seconds=SHARE * bench.seconds_left,
        num_copies=0,
        num_repeats=bench.counts.repeats,
    )
    return [check for check in others if check.num_wanted] + copies(bench)


def copies(bench: Bench) -> list[Check]:
    """The dense model beside identical copies of itself."""
    start, wanted = perf_counter(), bench.counts.copies
    dense = bench.workbench.dense

    def work(seed: int) -> Measurement:
        if seed % 20 == 0:
            log.info("identical copies: %d of %d", seed, wanted)
        return bench.measure(copy.deepcopy(dense), SHORT, seed)

    runs = bench.until_late(work, wanted)
    widths = [(run.ratio_high - run.ratio_low) / 2 for run in runs]
    done = {"num_done": len(runs), "num_wanted": wanted, "seconds": perf_counter() - start}
    return [
        Check(
            test="the interval of identical copies covers 1",
            value=coverage([(run.ratio_low, run.ratio_high) for run in runs], 1.0),
            at_least=MIN_COVERAGE,
            note=f"ratios: {spread([run.ratio for run in runs], 4)}",
            **done,
        ),
        Check(
            test="identical copies called more than 2 % faster",
            value=false_alarms([run.ratio for run in runs]),
            at_most=MAX_FALSE_ALARMS,
            note="the same runs",
            **done,
        ),
        Check(test="half-width of their interval, median", value=median(widths), note=spread(widths, 4), **done),
    ]
