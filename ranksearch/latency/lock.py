"""One lock per device and host: shared while training, exclusive while measuring.

Two files. Everybody passes the gate, one at a time, and waits for the main lock inside it: so nobody can take the main
lock past somebody who already waits for it, and a stream of sharers cannot keep a measurement waiting. The kernel
holds the locks (flock), so a process that dies, however it dies, frees them.
"""

import fcntl
import os
import tempfile
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
            with _open(directory / f"{self.name}.gate") as gate, _flocked(gate, fcntl.LOCK_EX):
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
def _flocked(descriptor: int, operation: int) -> Iterator[None]:
    """Unlocks by word, not just by closing: a forked child may keep the descriptor open."""
    fcntl.flock(descriptor, operation)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
