"""The `ranksearch run …` that a job runs: its flags, checked and completed."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ranksearch.errors import ConfigError
from ranksearch.records import Record

__all__ = ["RunCommand", "holds_password"]

_PASSWORD = re.compile(
    r"://[^:/@\s]*:[^@\s]+@"  # scheme://user:password@host
    r"|[?&](?!passfile=)[^=&]*(?:pass|pwd|secret|token)[^=&]*=",  # …?password=…; a passfile only says where it is
    re.IGNORECASE,
)
_RELATIVE_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)([^/:].*)")


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
                "a flag of the run holds a password, which everyone on the cluster could read in the command line; "
                "take it out and set RANKSEARCH_STORAGE in the environment"
            )

    def value_of(self, flag: str) -> str | None:
        """What follows the last `flag VALUE` or `flag=VALUE`; None where it is not given."""
        pairs = zip(self.flags, (*self.flags[1:], ""), strict=True)
        values = [
            following if given == flag else given.removeprefix(f"{flag}=")
            for given, following in pairs
            if given == flag or given.startswith(f"{flag}=")
        ]
        return values[-1] if values else None

    def completed(self, flag: str, value: str) -> Self:
        """With `flag VALUE` added, unless the flag is given."""
        return self if self.value_of(flag) is not None else self.replaced(flag, value)

    def replaced(self, flag: str, value: str) -> Self:
        """With `flag VALUE` as the last word on it."""
        return type(self)(flags=(*self.flags, flag, value))

    def with_lasting_storage(self, storage: str | None, folder: Path) -> Self:
        """With a database that outlives the job: a SQLite file named relatively would lie in Ray's copy of the folder.

        `storage` is the URL that the run would use, None for the default, and `folder` where a relative path starts. A
        database behind a server, or an absolute file, stays as it is.
        """
        relative = _RELATIVE_SQLITE.fullmatch(storage or "sqlite:///ranksearch.db")
        if relative is None:
            return self
        return self.replaced("--storage", f"{relative[1]}{folder / relative[2]}")
