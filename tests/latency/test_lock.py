"""Real processes, real locks: who held what, when, read from the system's monotonic clock."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from bisect import bisect
from itertools import groupby
from pathlib import Path

import pytest

from ranksearch.errors import StorageError
from ranksearch.latency.lock import DeviceLock

PACKAGE = Path(__file__).parents[2] / "ranksearch"
# lock.py itself needs no torch: importing it past the packages' front doors keeps children cheap
LIGHT_IMPORT = f"""
import sys, types
for name, path in (("ranksearch", {str(PACKAGE)!r}), ("ranksearch.latency", {str(PACKAGE / "latency")!r})):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
"""
CONTENDER = """
import json, sys, time
from pathlib import Path
from ranksearch.latency.lock import DeviceLock
lock, kind = DeviceLock("dev", Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
spans = []
for _ in range(80):
    asked = time.monotonic()
    with getattr(lock, kind)():
        got = time.monotonic()
        time.sleep(0.002)
        spans.append((kind, asked, got, time.monotonic()))
print(json.dumps(spans))
"""
HOLDER = """
import sys, time
from pathlib import Path
from ranksearch.latency.lock import DeviceLock
with getattr(DeviceLock("dev", Path(sys.argv[1])), sys.argv[2])():
    print("held", flush=True)
    time.sleep(60)
"""
QUEUER = """
import os, sys, time
from pathlib import Path
from ranksearch.latency.lock import DeviceLock
with getattr(DeviceLock("dev", Path(sys.argv[1])), sys.argv[2])():
    print("held", flush=True)
    sys.stdin.readline()
"""
FORKER = """
import os, sys, time
from pathlib import Path
from ranksearch.latency.lock import DeviceLock
with DeviceLock("dev", Path(sys.argv[1])).exclusive():
    child = os.fork()
    if child == 0:
        time.sleep(1.5)
        os._exit(0)
print("released", flush=True)
os.waitpid(child, 0)
"""


def start(script, *arguments):
    command = [sys.executable, "-c", LIGHT_IMPORT + script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def taken_within(seconds, directory):
    """Whether the lock can be taken within so many seconds. (A thread that could not take it yet does so later.)"""
    taken = threading.Event()

    def take():
        with DeviceLock("dev", directory).exclusive():
            taken.set()

    threading.Thread(target=take, daemon=True).start()
    return taken.wait(seconds)


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "locks"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture(scope="module")
def spans(tmp_path_factory):
    """Eight contenders, four training and four measuring, each in a tight loop."""
    directory = tmp_path_factory.mktemp("locks")
    directory.chmod(0o700)
    processes = [start(CONTENDER, directory, kind) for kind in ["shared"] * 4 + ["exclusive"] * 4]
    assert [process.stdout.readline() for process in processes] == [b"ready\n"] * 8
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    return [json.loads(output) for output in outputs]


def overlaps(one, other):
    return one[2] < other[3] and other[2] < one[3]


def test_exclusive_excludes_everybody_else(spans):
    flat = sorted((span for own in spans for span in own), key=lambda span: span[2])
    for span in flat:
        clashing = [other for other in flat if other is not span and overlaps(span, other)]
        assert span[0] == "shared" or not clashing
        assert all(other[0] == "shared" for other in clashing)


def test_shared_is_shared(spans):
    shared = [span for own in spans for span in own if span[0] == "shared"]
    assert any(overlaps(one, other) for one in shared for other in shared if one is not other)


def test_nobody_starves(spans):
    """Counted in what others are granted meanwhile, whatever the machine's load: once each is fair.

    A contender that loses its core between looking at the clock and asking is passed more often, without having asked.
    """
    waits = []
    for own in spans:
        granted = sorted(got for other in spans if other is not own for _, _, got, _ in other)
        waits += [bisect(granted, got) - bisect(granted, asked) for _, asked, got, _ in own]
    waits.sort()
    assert waits[int(0.9 * len(waits))] <= len(spans) - 1
    assert waits[-1] <= 6 * len(spans)


def num_queued(directory):
    """Places that are taken in the queue, as the kernel lists them."""
    queue = directory / "dev.queue"
    if not queue.exists():
        return 0
    taken = re.compile(rf"^\d+: OFDLCK +\S+ +WRITE .*:{queue.stat().st_ino} ", re.MULTILINE)
    return len(taken.findall(Path("/proc/locks").read_text()))


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def waiting():
    """Processes, those still there killed at the end."""
    processes = []
    yield processes
    for process in [p for p in processes if p.poll() is None]:
        process.kill()
        process.communicate()


KINDS = ["exclusive", "shared", "shared", "exclusive", "shared", "exclusive"]


def rounds(queue):
    """Who of those waiting, in order, hold it at the same time: sharers that stand next to each other."""
    return [list(group) for _, group in groupby(queue, lambda i: "shared" if KINDS[i] == "shared" else i)]


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="this system does not list its locks")
@pytest.mark.parametrize("killed", [None, 0, 1, 3, 5])
def test_first_come_first_served_also_where_one_is_killed_waiting(directory, waiting, killed):
    with DeviceLock("dev", directory).exclusive():
        for kind in KINDS:
            waiting.append(start(QUEUER, directory, kind))
            wait_for(lambda: num_queued(directory) == len(waiting))
        queue = [i for i in range(len(KINDS)) if i != killed]
        if killed is not None:
            waiting[killed].kill()
            waiting[killed].communicate()
            wait_for(lambda: num_queued(directory) == len(queue))
    for together in rounds(queue):
        assert [waiting[i].stdout.readline() for i in together] == [b"held\n"] * len(together)
        wait_for(lambda last=together[-1]: num_queued(directory) == sum(i > last for i in queue))
        for i in together:
            waiting[i].communicate(b"go\n")


@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_a_killed_holder_frees_the_lock(directory, kind):
    holder = start(HOLDER, directory, kind)
    assert holder.stdout.readline() == b"held\n"
    assert not taken_within(0.2, directory)
    os.kill(holder.pid, signal.SIGKILL)
    assert taken_within(5, directory)
    holder.communicate()


def test_a_forked_child_does_not_keep_the_lock(directory):
    """As a DataLoader's workers would: they are forked while their parent holds the lock, and outlive the holding."""
    parent = start(FORKER, directory)
    assert parent.stdout.readline() == b"released\n"
    assert taken_within(1, directory)
    parent.communicate()


def test_threads_of_one_process_exclude_each_other(directory):
    lock, inside, worst = DeviceLock("dev", directory), [], []

    def work():
        for _ in range(20):
            with lock.exclusive():
                inside.append(1)
                worst.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 80
    assert max(worst) == 1


def test_an_exception_inside_frees_the_lock(directory):
    lock = DeviceLock("dev", directory)
    with pytest.raises(KeyError), lock.exclusive():
        raise KeyError
    with lock.exclusive():
        pass


def test_devices_do_not_share_a_lock(directory):
    with DeviceLock("one", directory).exclusive(), DeviceLock("two", directory).exclusive():
        pass


def test_it_travels_to_other_processes(directory):
    lock = DeviceLock("dev", directory)
    assert pickle.loads(pickle.dumps(lock)) == lock


def test_the_default_directory_is_this_users_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with DeviceLock("dev").shared():
        (path,) = tmp_path.iterdir()
        assert path.name == f"ranksearch-{os.getuid()}"
        assert path.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_may_write_to_is_refused(directory):
    directory.chmod(0o777)
    with pytest.raises(StorageError, match="nobody else may write"), DeviceLock("dev", directory).shared():
        pass


def test_a_link_planted_by_others_is_refused(directory, tmp_path):
    (tmp_path / "link").symlink_to(directory)
    with pytest.raises(StorageError), DeviceLock("dev", tmp_path / "link").shared():
        pass


def test_a_directory_of_another_user_is_refused(directory, monkeypatch):
    monkeypatch.setattr("os.getuid", lambda: 4242)
    with pytest.raises(StorageError, match="of user 4242"), DeviceLock("dev", directory).shared():
        pass
