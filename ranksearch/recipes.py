"""Recipes: the ways of training that a study's trials choose from.

A search space names them, each by what differs from the defaults of `FinetuneConfig`; what a run says itself wins.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import PlainSerializer, ValidatorFunctionWrapHandler, WrapValidator

from ranksearch.errors import ConfigError
from ranksearch.records import FinetuneConfig, Recipe

__all__ = ["DEFAULT", "FinetuneTable", "recipes_of"]

DEFAULT = "default"  # the only recipe of a space that names none


def _only_given(value: Any, check: ValidatorFunctionWrapHandler) -> dict[str, Any]:
    """The keys of a table, read and checked as a FinetuneConfig, without the defaults of the others."""
    config = check(value)
    return {key: getattr(config, key) for key in value}


if TYPE_CHECKING:
    FinetuneTable = Mapping[str, Any]
else:  # checked as a FinetuneConfig is, and kept as it was given
    FinetuneTable = Annotated[FinetuneConfig, WrapValidator(_only_given), PlainSerializer(dict)]


def recipes_of(tables: Mapping[str, FinetuneTable], given: FinetuneTable | FinetuneConfig) -> tuple[Recipe, ...]:
    """The recipes of a space with what a run says over each of them; a whole FinetuneConfig takes their place.

    Raises ConfigError where the two do not go together.
    """
    if isinstance(given, FinetuneConfig):
        return (Recipe(name=DEFAULT, finetune=given),)
    return tuple(_joined(name, table, given) for name, table in (tables or {DEFAULT: {}}).items())


def _joined(name: str, table: FinetuneTable, given: FinetuneTable) -> Recipe:
    try:
        return Recipe(name=name, finetune=FinetuneConfig(**{**table, **given}))
    except ValueError as error:
        raise ConfigError(f"with the space's recipe {name!r} {error}; change the flags or the space") from error
