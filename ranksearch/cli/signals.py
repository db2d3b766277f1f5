"""Signals that end a run in good order, each with its exit code."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ranksearch.errors import PreemptedError

__all__ = ["INTERRUPTED", "Signalled", "listen", "listening", "signal_behind"]

INTERRUPTED = 128 + signal.SIGINT

# signal -> exit code, what to say
ENDINGS = {
    signal.SIGTERM: (128 + signal.SIGTERM, "terminated; run the same command again to go on"),
    signal.SIGUSR2: (PreemptedError.exit_code, "preempted; run the same command again"),
}


class Signalled(BaseException):
    """Told to end. No Exception: whatever keeps one trial's error from the next must not hold it."""

    def __init__(self, number: int) -> None:
        self.exit_code, reason = ENDINGS[signal.Signals(number)]
        super().__init__(reason)


def _end(number: int, _frame: FrameType | None) -> None:
    for other in ENDINGS:  # once is enough: a second one must not disturb the clearing up
        signal.signal(other, signal.SIG_IGN)
    raise Signalled(number)


def signal_behind(error: BaseException | None) -> "Signalled | KeyboardInterrupt | None":
    """The signal that an exception comes from, if it does. Ray's compiled code may wrap it in a SystemError, and its
    own handler, in force for a moment after `ray.init`, makes a SystemExit of SIGTERM."""
    if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
        return Signalled(signal.SIGTERM)
    while error is not None and not isinstance(error, Signalled | KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def listen() -> None:
    """Has to be repeated after `ray.init`, which takes SIGTERM for itself."""
    for number in ENDINGS:
        signal.signal(number, _end)


@contextmanager
def listening() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ENDINGS}
    listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
