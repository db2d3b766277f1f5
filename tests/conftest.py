import pytest

from ranksearch.tasks import Task
from tests.toy import toy_task


@pytest.fixture(scope="session")
def task() -> Task:
    """A trained toy. Shared by all tests: do not change it."""
    return toy_task()
