"""The YAML file of a search space: what may be tried on which layers.

search_spaces/README.md shows the format by example; `python -m ranksearch.space` prints search_spaces/schema.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from ranksearch.data_folder import data_folder
from ranksearch.errors import SpaceError
from ranksearch.factorize import METHODS
from ranksearch.recipes import FinetuneTable
from ranksearch.records import OBJECTIVES, FinetuneConfig, nearest

__all__ = ["FIRST", "LAST", "LayerRule", "RankRule", "SpaceConfig", "load_space"]

FIRST, LAST = "@first", "@last"

Rank = Annotated[int, Field(ge=1)]
Ranks = Annotated[tuple[Rank, ...], Field(min_length=1)]
RankOrRanks = Annotated[
    Annotated[Rank, Tag("rank")] | Annotated[Ranks, Tag("list")],  # told apart, so that an error is of what was meant
    Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "rank"),
]
RecipeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Share = Annotated[float, Field(gt=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RankRule(_Strict):
    """Which ranks of a method are worth trying on a layer."""

    multiple: Rank = Field(
        default=16,
        description="Ranks are multiples of this; a layer whose largest rank is small uses a finer step, so that there "
        "are at least four.",
    )
    also: tuple[Rank, ...] = Field(
        default=(), description="Ranks to try besides the multiples, where a layer has them."
    )
    minimum: Rank = Field(default=1, description="The smallest rank.")
    maximum: Rank | None = Field(default=None, description="The largest rank; the layer's own maximum when absent.")
    values: tuple[RankOrRanks, ...] | None = Field(
        default=None,
        description="Exactly these ranks, instead of multiples. One beyond a layer's maximum is an error. A list of "
        "ranks is for the methods that take as many; one that fits no method of a layer is an error.",
    )
    kept: tuple[Share, Share] = Field(
        default=(0.03, 0.75),
        description="Smallest and largest share of the layer's dense MACs that an option may keep where latency or "
        "MACs are an objective, of its parameters where those or bytes are; where both are, one of them is enough.",
    )
    aspects: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = Field(
        default=(1.0,),
        description="Of a method of several ranks (tucker2: out, in): how many times its share of its own largest the "
        "first rank is against that of the others. 1: all the same share.",
    )
    per_method: Annotated[int, Field(ge=1)] = Field(
        default=12,
        description="At most this many ranks of a method on a layer, spread evenly; so many of each of its aspects.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "RankRule":
        if self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(f"maximum is {self.maximum}; it must be at least the minimum, {self.minimum}")
        if self.kept[0] >= self.kept[1]:
            raise ValueError(f"kept is {list(self.kept)}; the first share must be smaller than the second")
        return self


class LayerRule(_Strict):
    """What differs for the layers whose name matches a pattern. A later rule wins over an earlier one."""

    match: str = Field(description="A layer's name or a pattern with * and ?, or @first, @last.")
    dense: bool | None = Field(
        default=None,
        description="Keep these layers dense, or (false) search them although they are the stem or the classifier.",
    )
    methods: tuple[str, ...] | None = Field(default=None, description="Methods to try on these layers.")
    ranks: RankRule | None = Field(default=None, description="Keys of the rank rule that differ for these layers.")


class SpaceConfig(_Strict):
    """A search space: what may become of each layer, and what is optimised."""

    name: str
    description: str = ""
    objectives: tuple[str, ...] = Field(default=("latency", "accuracy"), description=f"Any of {', '.join(OBJECTIVES)}.")
    methods: tuple[str, ...] = Field(
        default=("svd", "spatial_svd", "channel_svd", "tucker2"),
        description="Methods to try on every layer that can take them; the earlier one wins between two of equal cost.",
    )
    ranks: RankRule = RankRule()
    dense: tuple[str, ...] = Field(
        default=(FIRST, LAST),
        description="Layers that stay dense: names, patterns, @first (the stem), @last (the classifier).",
    )
    layers: tuple[LayerRule, ...] = ()
    recipes: Mapping[RecipeName, FinetuneTable] = Field(
        default={},
        description="Ways of training: a name, and what differs from the defaults of --finetune-…; such a flag wins. "
        "Of several, each trial's is searched; the first trains the seeds.",
    )

    @model_validator(mode="after")
    def _known(self) -> "SpaceConfig":
        for methods in (self.methods, *(rule.methods or () for rule in self.layers)):
            _check_words("method", methods, METHODS)
        _check_words("objective", self.objectives, OBJECTIVES)
        if (
            len(set(self.objectives)) < len(self.objectives)
            or "accuracy" not in self.objectives
            or len(self.objectives) < 2
        ):
            raise ValueError(
                f"objectives are {list(self.objectives)}; they must be accuracy and at least one other, each once"
            )
        for rule in self.layers:
            self.rank_rule(rule)  # the merged rule must be one, too
        return self

    def rank_rule(self, rule: LayerRule | None) -> RankRule:
        changed = rule.ranks.model_dump(exclude_unset=True) if rule and rule.ranks else {}
        return RankRule.model_validate(self.ranks.model_dump() | changed)


def _check_words(what: str, words: Sequence[str], allowed: Mapping[str, object]) -> None:
    for word in words:
        if word not in allowed:
            raise ValueError(f"unknown {what} {word!r}{nearest(word, allowed)}; allowed are {', '.join(allowed)}")


def load_space(name: str) -> SpaceConfig:
    """The space of a name in search_spaces/, or of a YAML file. Raises SpaceError, one line saying where and why."""
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        path = data_folder("search_spaces") / f"{name}.yaml"
    if not path.is_file():
        shipped = sorted(p.stem for p in data_folder("search_spaces").glob("*.yaml"))
        raise SpaceError(
            f"no search space {name!r}{nearest(name, shipped)}; give one of {', '.join(shipped)} or a .yaml file"
        )
    try:
        return SpaceConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpaceError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise SpaceError(f"{path}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the file"
    if first["type"] == "extra_forbidden":
        allowed = [*SpaceConfig.model_fields, *RankRule.model_fields, *LayerRule.model_fields]
        return f"unknown key {where!r}{nearest(str(first['loc'][-1]), allowed)}"
    if first["type"] == "unexpected_keyword_argument":
        return f"unknown key {where!r}{nearest(str(first['loc'][-1]), [f.name for f in fields(FinetuneConfig)])}"
    if first["type"] in {"model_type", "missing"}:
        return f"{where}: {first['msg'].lower()}; search_spaces/README.md shows the format"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}" + _got(first)


def _got(error: Mapping[str, Any]) -> str:
    return "" if error["type"] == "value_error" else f" (got {error['input']!r})"
