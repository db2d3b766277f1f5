import os
import signal
import subprocess
import sys

import pytest

from ranksearch.database import Database, study_lock
from ranksearch.errors import StorageError

HOLDER = """
import sys
from ranksearch.database import Database, study_lock
with Database.open(sys.argv[1]) as database, study_lock(database, sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(url):
    """Starts a process that holds the lock of a study; all are gone at the end."""
    started = []

    def start(study):
        command = [sys.executable, "-c", HOLDER, url, study]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_one_driver_a_study_until_it_ends(database, holder):
    process = holder("a")
    owner = f"process {process.pid} on {os.uname().nodename}"
    with pytest.raises(StorageError, match=owner) as caught, study_lock(database, "a"):
        pytest.fail("two drivers hold one lock")
    assert "\n" not in str(caught.value)
    with study_lock(database, "b"):
        pass
    for _ in range(3):  # one who failed does not let the next one in
        with pytest.raises(StorageError), study_lock(database, "a"):
            pytest.fail("two drivers hold one lock")
    process.communicate()
    with study_lock(database, "a"):
        pass


def test_a_killed_driver_lets_go(database, holder):
    process = holder("a")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with study_lock(database, "a"):
        pass


def test_the_lock_is_of_one_process_once(database):
    with study_lock(database, "a"), pytest.raises(StorageError), study_lock(database, "a"):
        pytest.fail("held twice")
    with study_lock(database, "a"):
        pass


def test_an_error_within_lets_go(database):
    with pytest.raises(ZeroDivisionError), study_lock(database, "a"):
        1 / 0  # noqa: B018
    with study_lock(database, "a"):
        pass


def test_the_same_study_in_another_database_is_another(database, tmp_path):
    (tmp_path / "other").mkdir()
    other = Database.open(f"sqlite:///{tmp_path}/other/ranksearch.db")
    with other, study_lock(database, "a"), study_lock(other, "a"):
        pass


def test_any_study_name_makes_a_file_name(database, tmp_path):
    with study_lock(database, "../../etc/a\n" * 50):
        assert len(list(tmp_path.glob("ranksearch.db.*.lock"))) == 1
