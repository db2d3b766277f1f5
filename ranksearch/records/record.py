"""What every record is: a frozen dataclass that checks its own values and travels as JSON.

`to_json` gives plain dicts, lists, strings and numbers, `from_json` takes them back, and `key_of` names a record by the
hash of that JSON.
"""

import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import Any, Self, cast

__all__ = ["Record", "key_of", "nearest", "one_of", "require"]


def nearest(word: str, allowed: Iterable[str]) -> str:
    """The allowed word that `word` probably meant, as a hint to append to an error: ` (did you mean 'x'?)` or ''."""
    import difflib

    found = difflib.get_close_matches(word, list(allowed), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


class Record:
    """A frozen dataclass that travels as JSON."""

    __slots__ = ()
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - where pydantic checks a record, as a table of settings

    def to_json(self) -> dict[str, Any]:
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises ValueError on an unknown key, TypeError on a missing one."""
        hints = typing.get_type_hints(cls)
        if unknown := [k for k in data if k not in hints]:
            raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}{nearest(unknown[0], hints)}")
        return cls(**{name: _typed(hints[name], value) for name, value in data.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in cast("list[Any]", value)]
    return value.value if isinstance(value, StrEnum) else value


def _typed(hint: Any, value: Any) -> Any:
    """`value`, read from JSON, as the type that `hint` names."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint) or hint
    if value is None or origin is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        (hint, *others) = (a for a in arguments if a is not type(None))
        return value if others else _typed(hint, value)
    if origin is tuple:
        return tuple(_typed(arguments[0], v) for v in value)
    if origin is Mapping:
        return {k: _typed(arguments[1], v) for k, v in value.items()}
    if issubclass(origin, Record):
        return origin.from_json(value)
    return origin(value) if issubclass(origin, StrEnum | float) else value


def key_of(record: "Record | Mapping[str, Any]") -> str:
    """Sixteen hex digits naming a record's content; equal records have equal keys in every process."""
    plain = record.to_json() if is_dataclass(record) else _plain(record)  # type: ignore[union-attr]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def require(condition: bool, what: str, got: object, rule: str) -> None:
    if not condition:
        raise ValueError(f"{what} is {got!r}; it must be {rule}")


def one_of(what: str, got: str, allowed: tuple[str, ...]) -> None:
    require(got in allowed, what, got, f"one of {', '.join(allowed)}{nearest(got, allowed)}")
