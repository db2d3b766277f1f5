"""The `ranksearch run …` that a job runs: its flags, checked and completed."""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from ranksearch.errors import ConfigError
from ranksearch.records import Record

__all__ = ["RunCommand", "holds_password"]

_PASSWORD = re.compile(
    r"://[^:/@\s]*:[^@\s]+@"  # scheme://user:password@host
    r"|[?&](?!passfile=)[^=&]*(?:pass|pwd|secret|token)[^=&]*=",  # …?password=…; a passfile only says where it is
    re.IGNORECASE,
)


def holds_password(text: str) -> bool:
    """Whether a URL with a password stands in `text`."""
    return _PASSWORD.search(text) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCommand(Record):
    """The flags of `ranksearch run`. Raises ConfigError where one holds a password: everyone can read command lines."""

    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(holds_password(flag) for flag in self.flags):
            raise ConfigError(
                "a flag of the run holds a password, and everyone on the cluster could read the command line; "
                "set RANKSEARCH_STORAGE in the environment instead of --storage"
            )

    def value_of(self, flag: str) -> str | None:
        """What follows the last `flag VALUE` or `flag=VALUE`; None where it is not given."""
        values = [
            following if given == flag else given.removeprefix(f"{flag}=")
            for given, following in pairwise((*self.flags, ""))
            if given == flag or given.startswith(f"{flag}=")
        ]
        return values[-1] if values else None

    def with_flag(self, flag: str, value: str) -> Self:
        """With `flag VALUE` added; of a flag that is given twice the last counts."""
        return type(self)(flags=(*self.flags, flag, value))

    def argv(self, python: str) -> list[str]:
        return [python, "-m", "ranksearch", "run", *self.flags]
