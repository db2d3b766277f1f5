"""SIGKILL at random moments: the driver's, and its workers'. A run then ends with exactly N finished trials."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ranksearch.database import Database
from ranksearch.errors import NotFoundError
from ranksearch.records import TrialState
from tests.study.test_source import check_study

MINUTES = 60


def start(database: Path, budget: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.study.drive", str(database), str(budget), "ray"]
    # Its own session: a killed driver's Ray processes can then be told from everybody else's and ended.
    with database.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def end(driver: subprocess.Popen, family: set[int]) -> None:
    """End what the driver started: its process group, and the workers that Ray put elsewhere, by their ids."""
    with suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)
    for pid in family:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if "ray" in " ".join(process.cmdline()):
                process.kill()
    driver.wait()


def family_of(driver: subprocess.Popen) -> set[int]:
    with suppress(psutil.NoSuchProcess):
        return {child.pid for child in psutil.Process(driver.pid).children(recursive=True)}
    return set()


def num_complete(database: Path) -> int:
    with suppress(NotFoundError), Database.open(f"sqlite:///{database}", create=False) as opened:
        return sum(row.state is TrialState.COMPLETE for row in opened.trials("killed"))
    return 0


def wait_until(ready, driver: subprocess.Popen, seconds: float = 2 * MINUTES) -> None:
    deadline = time.monotonic() + seconds
    while not ready() and driver.poll() is None:
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.05)


def finish(database: Path, budget: int) -> None:
    driver = start(database, budget)
    code = driver.wait(5 * MINUTES)
    assert code == 0, database.with_suffix(".log").read_text()[-3000:]
    check_study(f"sqlite:///{database}", "killed", budget)


def driver_kills(tmp_path: Path, kills: int, budget: int) -> None:
    """Each driver dies at a random moment after it completed at least one more trial than the one before."""
    database, moments = tmp_path / "kills.db", random.Random(0)
    for _ in range(kills):
        driver, before, family = start(database, budget), num_complete(database), set()

        def got_on(driver=driver, before=before, family=family) -> bool:
            family |= family_of(driver)
            return num_complete(database) > before

        wait_until(got_on, driver)
        time.sleep(moments.uniform(0, 0.6))
        assert driver.poll() is None, "the budget was spent before the kills were: raise it"
        family |= family_of(driver)
        driver.kill()
        driver.wait()
        end(driver, family)
    finish(database, budget)
    assert num_complete(database) == budget, "a killed driver cost a trial its life"


def worker_kills(tmp_path: Path, kills: int, budget: int) -> None:
    database, moments = tmp_path / "kills.db", random.Random(1)
    driver = start(database, budget)
    try:
        for done in range(kills):
            wait_until(lambda done=done: num_complete(database) > done, driver)
            time.sleep(moments.uniform(0, 0.6))
            workers: list[psutil.Process] = []

            def found(workers=workers) -> bool:
                workers[:] = [p for p in _processes(driver) if "_TrialWorker" in _name(p)]
                return bool(workers)

            wait_until(found, driver)
            assert workers, "the budget was spent before the kills were: raise it"
            victim = moments.choice(workers)
            with suppress(psutil.NoSuchProcess):
                victim.kill()
                victim.wait(10)
        code = driver.wait(5 * MINUTES)
        assert code == 0, database.with_suffix(".log").read_text()[-3000:]
    finally:
        end(driver, family_of(driver))
    check_study(f"sqlite:///{database}", "killed", budget)
    with Database.open(f"sqlite:///{database}", create=False) as opened:
        lost = [row for row in opened.trials("killed") if row.state is TrialState.FAILED]
    assert lost, "no kill hit a trial"
    assert all("worker was lost" in row.result.reason for row in lost)


def _processes(driver: subprocess.Popen) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(driver.pid).children(recursive=True)
    return []


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@pytest.mark.timeout(10 * MINUTES)
def test_two_kills_of_the_driver(tmp_path):
    driver_kills(tmp_path, kills=2, budget=11)


@pytest.mark.timeout(10 * MINUTES)
def test_two_kills_of_a_worker(tmp_path):
    worker_kills(tmp_path, kills=2, budget=15)


@pytest.mark.slow
@pytest.mark.timeout(40 * MINUTES)
def test_twenty_kills_of_the_driver(tmp_path):
    driver_kills(tmp_path, kills=20, budget=60)


@pytest.mark.slow
@pytest.mark.timeout(40 * MINUTES)
def test_twenty_kills_of_a_worker(tmp_path):
    worker_kills(tmp_path, kills=20, budget=120)
