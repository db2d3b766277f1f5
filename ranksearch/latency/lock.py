"""One lock per device and host: shared while training, exclusive while measuring.

Two files. In `NAME.queue` everybody who arrives locks one byte, the later the further on, and waits until nobody holds
an earlier one: so they are let in in the order in which they came, trainings beside each other and measurements alone,
and neither kind can keep the other waiting. Who is let in holds `NAME.lock`. The kernel holds the locks, so a process
that dies, holding or waiting, however it dies, frees them.
"""

import fcntl
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ranksearch.errors import StorageError

__all__ = ["DeviceLock"]


@dataclass(frozen=True, slots=True)
class DeviceLock:
    """The lock of the device called `name`, in `directory` (default: one of this user's own under the system's
    temporary directory). Plain data: it travels to other processes. A thread must not take it twice.
    """

    name: str
    directory: Path | None = None

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Waits until nobody measures. Raises StorageError when the directory is not this user's."""
        with self._held(fcntl.LOCK_SH):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Waits until nobody else holds it in any way. Raises StorageError when the directory is not this user's."""
        with self._held(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _held(self, operation: int) -> Iterator[None]:
        directory = _own_directory(self.directory)
        with _open(directory / f"{self.name}.lock") as main:
            with _open(directory / f"{self.name}.queue") as queue, _turn(queue):
                fcntl.flock(main, operation)
            try:
                yield
            finally:
                fcntl.flock(main, fcntl.LOCK_UN)


def _own_directory(directory: Path | None) -> Path:
    """A directory that nobody else can write to: in a shared one, others could hold our locks or plant links.

    `lstat` looks at a link itself, which is its planter's, and on Linux writable by all.
    """
    uid = os.getuid()
    path = directory or Path(tempfile.gettempdir()) / f"ranksearch-{uid}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if status.st_uid != uid or status.st_mode & 0o022:
        raise StorageError(
            f"lock directory {path} belongs to user {status.st_uid} with mode {status.st_mode & 0o777:o}; it must be "
            f"a directory of user {uid} that nobody else may write to: remove it, or set TMPDIR to another place"
        )
    return path


@contextmanager
def _open(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _turn(queue: int) -> Iterator[None]:
    """Inside, whoever came before has been let in and whoever comes later waits.

    A place in the queue is the nanosecond of arrival, on the clock that all processes of a host share; two of the same
    nanosecond go in one after the other. Unlocks by word, not just by closing: a forked child may keep the descriptor.
    """
    arrival = time.monotonic_ns()
    try:
        _lock_bytes(queue, fcntl.F_WRLCK, arrival, 1)
        _lock_bytes(queue, fcntl.F_RDLCK, 0, arrival)
        yield
    finally:
        _lock_bytes(queue, fcntl.F_UNLCK, 0, 0)


def _lock_bytes(descriptor: int, kind: int, start: int, length: int) -> None:
    """Locks `length` bytes (0: all) of an open file, which need not be there, and waits for it.

    The lock is the open file's (OFD), not the process's as other byte locks are: threads exclude each other, too.
    """
    flock = struct.pack("hhqqi", kind, os.SEEK_SET, start, length, 0)  # struct flock of 64-bit Linux
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, flock)
