"""What every error about bad input promises."""

import contextlib

import pytest

from ranksearch.errors import UsageError


@contextlib.contextmanager
def refuses(error: type[UsageError], *words: str):
    """The block raises `error`: exit code 2, one line that holds all `words`."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert message
    assert "\n" not in message
    assert not [word for word in words if word not in message], message
