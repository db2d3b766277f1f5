import signal

import pytest

from ranksearch.tasks import Task
from tests.toy import toy_task


@pytest.fixture(scope="session", autouse=True)
def interrupts_arrive() -> None:
    """As on a terminal: what a shell puts in the background (CI, nohup) starts with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def task() -> Task:
    """A trained toy. Shared by all tests: do not change it."""
    return toy_task()
