"""Ends a worker process whose trial runs past its time limit, hung or not."""

import faulthandler
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ranksearch.outbox import Outbox
from ranksearch.records import TrialResult, TrialState

__all__ = ["watchdog"]

# Python code cannot run while a native call holds the interpreter; the fault handler's own thread still can.
GRACE_SECONDS = 5.0


@contextmanager
def watchdog(seconds: float | None, key: str, outbox: Outbox | None) -> Iterator[None]:
    """Leave a `failed` result of this key in the outbox and end the process once `seconds` have passed inside."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, _give_up, (seconds, key, outbox))
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True)
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()


def _give_up(seconds: float, key: str, outbox: Outbox | None) -> None:
    if outbox is not None:
        reason = f"TrialTimeoutError: the trial ran past its limit of {seconds:g} s (--trial-timeout)"
        outbox.put_result(TrialResult(key=key, state=TrialState.FAILED, reason=reason))
    os._exit(1)
